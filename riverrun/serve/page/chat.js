(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const { make, both } = dom;
  const log = $("log"), input = $("input"), model = $("model"), key = $("key");
  let turns = [];          // {role, text, thought, steps, calls, figures}, as shown and kept
  let chat = newId();      // the conversation's name among those kept
  let running = null;      // the AbortController of the answer under way
  let before = null;       // {turns, text}: what an edit has taken away

  // ---- small helpers
  function scrolling(change) {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    change();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
  function notice(en, zh = en) {
    scrolling(() => log.append(make("p", "notice bad", both(en, zh))));
  }
  function clearNotices() {
    for (const node of log.querySelectorAll(".notice")) node.remove();
  }
  function headers() {
    return key.value ? { "Authorization": "Bearer " + key.value } : {};
  }
  async function refusal(response) {
    let message = "";
    try { message = (await response.json()).error.message; } catch { /* not our JSON: the status must do */ }
    const error = new Error(message || `${response.status} ${response.statusText}`);
    error.status = response.status;
    return error;
  }

  // ---- a small safe subset of Markdown: code blocks, `code`, **strong**, paragraphs
  function render(text) {
    const out = [];
    text.split(/^```/m).forEach((piece, index) => {
      if (index % 2) {
        out.push(make("pre", "code", make("code", "", piece.replace(/^[^\n]*\n?/, "").replace(/\n$/, ""))));
        return;
      }
      for (const paragraph of piece.split(/\n{2,}/)) {
        if (!paragraph.trim()) continue;
        const p = make("p");
        for (const part of paragraph.trim().split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
          if (/^`.+`$/.test(part)) p.append(make("code", "", part.slice(1, -1)));
          else if (/^\*\*.+\*\*$/.test(part)) p.append(make("strong", "", part.slice(2, -2)));
          else p.append(part);
        }
        out.push(p);
      }
    });
    return out;
  }

  // ---- a tool call of an agent: folded; the query, then its rows
  function renderStep(step) {
    const data = step.data && typeof step.data === "object" ? step.data : {};
    const summary = make("summary", "", make("code", "", String(step.tool)));
    if (step.is_error) summary.append(" ", make("span", "badge bad", both("error", "出错")));
    else if (Array.isArray(data.rows)) {
      const n = data.rows.length;
      summary.append(" · ", both(n === 1 ? "1 row" : `${n} rows`, `${n} 行`));
    } else if (Array.isArray(data.pages)) summary.append(" · ", data.pages.join(", "));
    const values = Object.values(step.arguments || {});
    const single = values.length === 1 && typeof values[0] === "string";
    const shown = single ? values[0] : JSON.stringify(step.arguments, null, 2);
    const fold = make("details", "", summary, make("pre", "code", make("code", "", shown)));
    if (Array.isArray(data.rows) && Array.isArray(data.columns) && !step.is_error) {
      const head = make("tr", "", ...data.columns.map((name) => make("th", "", String(name))));
      const rows = data.rows.map((row) => make("tr", "", ...[].concat(row).map((cell) => make("td", "", cell === null ? "–" : String(cell)))));
      fold.append(make("div", "rows", make("table", "", make("thead", "", head), make("tbody", "", ...rows))));
    } else {
      fold.append(make("pre", "code", make("code", "", String(step.content ?? ""))));
    }
    return make("div", "step", fold);
  }

  function renderCall(call) {
    let shown = call.arguments;
    try { shown = JSON.stringify(JSON.parse(call.arguments), null, 2); } catch { /* it is still being written */ }
    const fold = make("details", "", make("summary", "", make("code", "", call.name)), make("pre", "code", make("code", "", shown)));
    return make("div", "step", fold);
  }
  function button(en, zh, action) {
    const node = make("button", "", both(en, zh));
    node.type = "button";
    node.addEventListener("click", action);
    return node;
  }

  // ---- one turn of the conversation, finished or under way
  class Turn {
    constructor(turn) {
      this.turn = turn;
      this.thought = make("div", "thought");
      this.steps = make("div");
      this.calls = make("div");
      this.body = make("div", "answer");
      this.figures = make("div", "figures");
      const user = turn.role === "user";
      this.node = make("div", "turn " + turn.role, ...(user ? [turn.text] : [this.thought, this.steps, this.body, this.calls, this.figures]));
      this.tools = make("div", "tools", user ? button("Edit", "编辑", () => edit(this)) : button("Again", "重新生成", () => again(this)));
      this.tools.append(button("Copy", "复制", () => navigator.clipboard?.writeText(turn.text)));
      this.entry = make("div", "entry " + turn.role, this.node, this.tools);
      log.append(this.entry);
      log.scrollTop = log.scrollHeight;
      if (!user) {
        for (const step of turn.steps) this.steps.append(renderStep(step));
        this.draw();
      }
    }
    get isEmpty() {
      const { text, thought, steps, calls } = this.turn;
      return !text && !thought && !steps.length && !calls.length;
    }
    draw() {
      const { text, thought, calls } = this.turn;
      scrolling(() => {
        if (thought) {
          this.fold ||= make("details", "", make("summary", "", both("Thought", "思考过程")), make("p"));
          this.fold.lastChild.textContent = thought;
          if (!this.fold.isConnected) { this.fold.open = this.node.classList.contains("busy"); this.thought.append(this.fold); }
          else if (text && !this.closed) { this.closed = true; this.fold.open = false; }
        }
        this.body.replaceChildren(...render(text));
        this.calls.replaceChildren(...calls.map(renderCall));
        const [tokens, rate, wait, reason] = this.turn.figures || this.numbers();
        const out = [];
        if (tokens) out.push(both(`${tokens} tokens`, `${tokens} 个词元`));
        if (rate) out.push(" · ", both(`${rate} tokens/s`, `${rate} 词元/秒`));
        if (wait) out.push(" · ", both(`first after ${wait} s`, `首个 ${wait} 秒`));
        if (reason === "length") out.push(" · ", both("cut at the most tokens", "已达最多词元"));
        if (reason === "stopped") out.push(" · ", both("stopped", "已停止"));
        this.figures.replaceChildren(...out);
      });
    }
    numbers() { return []; }
  }

  class Answer extends Turn {
    constructor() {
      super({ role: "assistant", text: "", thought: "", steps: [], calls: [], figures: null });
      this.node.classList.add("busy");
      this.pieces = 0;
      this.usage = this.reason = null;
      this.started = performance.now();
      this.first = this.last = 0;
    }
    piece() {
      this.last = performance.now();
      this.first ||= this.last;
      this.pieces += 1;
    }
    take(chunk) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) this.usage = chunk.usage;
      for (const choice of chunk.choices || []) {
        const { content, reasoning_content: thought, tool_calls: parts } = choice.delta || {};
        if (choice.step) {
          this.piece();
          this.turn.steps.push(choice.step);
          scrolling(() => this.steps.append(renderStep(choice.step)));
        }
        for (const part of parts || []) {
          const call = this.turn.calls[part.index ?? 0] ||= { name: "", arguments: "" };
          call.name += part.function?.name || "";
          call.arguments += part.function?.arguments || "";
          this.piece();
        }
        if (thought) { this.piece(); this.turn.thought += thought; }
        if (content) { this.piece(); this.turn.text += content; }
        if (choice.finish_reason) this.reason = choice.finish_reason;
      }
      this.frame ||= requestAnimationFrame(() => { this.frame = 0; this.draw(); });
    }
    numbers() {
      if (!this.first) return [0, "", "", this.reason];
      const tokens = this.usage ? this.usage.completion_tokens : this.pieces;
      const seconds = (this.last - this.first) / 1000;
      const rate = seconds > 0.05 && tokens > 1 ? ((tokens - 1) / seconds).toFixed(1) : "";
      return [tokens, rate, ((this.first - this.started) / 1000).toFixed(2), this.reason];
    }
    end() {
      cancelAnimationFrame(this.frame);
      this.turn.figures = this.numbers();
      this.node.classList.remove("busy");
      this.draw();
    }
  }

  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        const data = line.slice(6).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  }

  function settings() {
    const out = {};
    for (const [id, name] of [["temperature", "temperature"], ["top-p", "top_p"], ["top-k", "top_k"],
      ["repetition-penalty", "repetition_penalty"], ["seed", "seed"], ["max-tokens", "max_tokens"]]) {
      if ($(id).value !== "" && $(id).checkValidity()) out[name] = Number($(id).value);
    }
    return { temperature: 0, max_tokens: 512, ...out };
  }
  function conversation() {
    const system = $("system").value.trim();
    const said = turns.map(({ role, text }) => ({ role, content: text }));
    return system ? [{ role: "system", content: system }, ...said] : said;
  }

  async function send(text) {
    before = null;
    $("settings").open = $("chats").open = false;
    $("welcome").hidden = true;
    const asked = { role: "user", text };
    turns.push(asked);
    await answer(new Turn(asked));
  }

  // The answer to the conversation as it stands; `asked` is the turn that goes back into the box when nothing comes.
  async function answer(asked) {
    const controller = running = new AbortController();
    busy(true);
    clearNotices();
    const answer = new Answer();
    try {
      const response = await fetch("v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json", ...headers() },
        signal: controller.signal,
        body: JSON.stringify({
          model: model.value, messages: conversation(), stream: true, stream_options: { include_usage: true }, ...settings(),
        }),
      });
      if (!response.ok) throw await refusal(response);
      for await (const chunk of events(response)) answer.take(chunk);
      if (!answer.reason) throw new Error("the connection broke off");
    } catch (error) {
      if (controller.signal.aborted) answer.reason = "stopped";
      else if (running === controller) fail(error, answer, asked);
    }
    if (running !== controller) return;   // another chat was opened meanwhile
    answer.end();
    if (answer.isEmpty) answer.entry.remove();
    else turns.push(answer.turn);
    running = null;
    busy(false);
    keep();
  }

  function fail(error, answer, asked) {
    answer.reason = "failed";
    if (error.status === 401) $("settings").open = true;
    if (answer.isEmpty && asked) {
      turns.pop();
      asked.entry.remove();
      if (!input.value) input.value = asked.turn.text;
    }
    const lost = error instanceof TypeError;
    notice(lost ? "The server cannot be reached." : error.message, lost ? "无法连接服务器。" : error.message);
  }

  // ---- changing what was said
  function cut(entry) {
    const place = [...log.querySelectorAll(".entry")].indexOf(entry.entry);
    for (const node of [...log.querySelectorAll(".entry")].slice(place)) node.remove();
    return turns.splice(place);
  }
  function edit(entry) {
    if (running) return;
    before = { turns: [...turns], text: input.value };
    cut(entry);
    input.value = entry.turn.text;
    grow();
    input.focus();
  }
  function again(entry) {
    if (running || model.disabled) return;
    cut(entry);
    answer(null);
  }

  // ---- conversations kept in this browser
  function newId() { return Date.now().toString(36) + Math.random().toString(36).slice(2, 8); }
  function kept() {
    try { return JSON.parse(localStorage.getItem("riverrun.chats")) || []; } catch { return []; }
  }
  function store(chats) {
    for (let size = 50; size > 0; size = Math.floor(size / 2)) {   // the oldest go when there is no more room
      try { return localStorage.setItem("riverrun.chats", JSON.stringify(chats.slice(0, size))); } catch { /* too much */ }
    }
  }
  function keep() {
    const others = kept().filter((each) => each.id !== chat);
    if (turns.length) others.unshift({ id: chat, title: turns[0].text.slice(0, 80), turns });
    store(others);
    list();
  }
  function list() {
    $("chat-list").replaceChildren(...kept().map((each) => {
      const open = make("button", "open", each.title);
      open.type = "button";
      open.addEventListener("click", () => { $("chats").open = false; show(each.id, each.turns); });
      const drop = button("Delete", "删除", () => {
        store(kept().filter((other) => other.id !== each.id));
        if (each.id === chat) show(newId(), []);
        list();
      });
      return make("li", each.id === chat ? "here" : "", open, drop);
    }));
  }
  function show(id, said) {
    running?.abort();
    running = before = null;
    chat = id;
    turns = [...said];
    for (const node of [...log.children]) if (node.id !== "welcome") node.remove();
    $("welcome").hidden = turns.length > 0;
    for (const turn of turns) new Turn(turn);
    busy(false);
    list();
  }

  function busy(on) {
    $("send").hidden = on;
    $("stop").hidden = !on;
    log.classList.toggle("busy", on);
    if (!on) { grow(); input.focus(); }
  }
  function grow() {
    input.style.height = "auto";
    input.style.height = input.scrollHeight + 2 + "px";
  }

  async function loadModels() {
    try {
      const response = await fetch("v1/models", { headers: headers() });
      if (!response.ok) throw await refusal(response);
      const entries = (await response.json()).data, ids = entries.map((entry) => entry.id);
      model.replaceChildren(...entries.map(({ id, parent }) => new Option(parent ? `${id} (${parent})` : id, id)));
      const before = sessionStorage.getItem("riverrun.model");
      if (ids.includes(before)) model.value = before;
      model.disabled = ids.length === 0;
      clearNotices();
      if (!ids.length) notice("This server has no model.", "本服务器没有模型。");
    } catch (error) {
      model.disabled = true;
      clearNotices();
      if (error.status === 401) {
        $("settings").open = true;
        notice("This server needs an API key: enter it under Settings.", "本服务器需要 API 密钥：请在设置中输入。");
      } else notice("The models cannot be listed: " + error.message, "无法列出模型：" + error.message);
    }
  }

  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (!text || running || model.disabled) return;
    input.value = "";
    grow();
    send(text);
  });
  $("options").addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("composer").requestSubmit();
    } else if (event.key === "Escape" && before) {   // an edit is taken back
      const { turns: said, text } = before;
      show(chat, said);
      input.value = text;
    }
  });
  input.addEventListener("input", grow);
  $("stop").addEventListener("click", () => running?.abort());
  $("new-chat").addEventListener("click", () => show(newId(), []));
  model.addEventListener("change", () => sessionStorage.setItem("riverrun.model", model.value));
  key.addEventListener("change", () => { sessionStorage.setItem("riverrun.key", key.value); loadModels(); });
  document.addEventListener("click", (event) => { for (const id of ["settings", "chats"]) if (!$(id).contains(event.target) && event.target.isConnected) $(id).open = false; });
  function translate() {
    input.placeholder = input.dataset[document.documentElement.dataset.lang];
    input.setAttribute("aria-label", input.placeholder);
  }
  document.addEventListener("language", translate);
  translate();
  key.value = sessionStorage.getItem("riverrun.key") || "";
  loadModels();
  list();
  input.focus();
})();
