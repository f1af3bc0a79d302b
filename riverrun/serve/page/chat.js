(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const log = $("log"), input = $("input"), model = $("model"), key = $("key");
  let messages = [];       // the conversation as it is sent
  let running = null;      // the AbortController of the answer under way

  // ---- small helpers: everything shown is set as text, never as HTML
  function make(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  }
  function both(en, zh) {
    const span = make("span");
    for (const [lang, text] of [["en", en], ["zh", zh]]) {
      const part = make("span", "", text);
      part.lang = lang;
      span.append(part);
    }
    return span;
  }
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

  // ---- the answer under way
  class Answer {
    constructor() {
      this.text = "";
      this.pieces = 0;
      this.usage = null;
      this.reason = null;
      this.started = performance.now();
      this.first = this.last = 0;
      this.steps = make("div");
      this.body = make("div", "answer");
      this.figures = make("div", "figures");
      this.node = make("div", "turn assistant busy", this.steps, this.body, this.figures);
      scrolling(() => log.append(this.node));
      log.scrollTop = log.scrollHeight;
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
        if (choice.step) { this.piece(); scrolling(() => this.steps.append(renderStep(choice.step))); }
        for (const call of choice.delta?.tool_calls || []) {
          const f = call.function || {};
          this.text += `\n\n\`\`\`json\n${f.name}(${f.arguments})\n\`\`\`\n`;
          this.piece();
        }
        if (choice.delta?.content) { this.piece(); this.text += choice.delta.content; }
        if (choice.finish_reason) this.reason = choice.finish_reason;
      }
      this.frame ||= requestAnimationFrame(() => { this.frame = 0; this.draw(); });
    }
    draw() {
      scrolling(() => {
        this.body.replaceChildren(...render(this.text));
        this.figures.replaceChildren(...this.numbers());
      });
    }
    numbers() {
      if (!this.first) return [];
      const tokens = this.usage ? this.usage.completion_tokens : this.pieces;
      const wait = (this.first - this.started) / 1000, seconds = (this.last - this.first) / 1000;
      const out = [both(`${tokens} tokens`, `${tokens} 个词元`)];
      if (seconds > 0.05 && tokens > 1) {
        const rate = ((tokens - 1) / seconds).toFixed(1);
        out.push(" · ", both(`${rate} tokens/s`, `${rate} 词元/秒`));
      }
      out.push(" · ", both(`first after ${wait.toFixed(2)} s`, `首个 ${wait.toFixed(2)} 秒`));
      if (this.reason === "length") out.push(" · ", both("cut at the most tokens", "已达最多词元"));
      if (this.reason === "stopped") out.push(" · ", both("stopped", "已停止"));
      return out;
    }
    end() {
      cancelAnimationFrame(this.frame);
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

  async function send(text) {
    const controller = running = new AbortController();
    busy(true);
    clearNotices();
    $("welcome").hidden = true;
    const asked = make("div", "turn user", text);
    log.append(asked);
    messages.push({ role: "user", content: text });
    const answer = new Answer();
    const number = (id, fallback) => ($(id).value !== "" && $(id).checkValidity() ? Number($(id).value) : fallback);
    try {
      const response = await fetch("v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json", ...headers() },
        signal: controller.signal,
        body: JSON.stringify({
          model: model.value, messages, stream: true, stream_options: { include_usage: true },
          temperature: number("temperature", 0), max_tokens: number("max-tokens", 512),
        }),
      });
      if (!response.ok) throw await refusal(response);
      for await (const chunk of events(response)) answer.take(chunk);
      if (!answer.reason) throw new Error("the connection broke off");
    } catch (error) {
      if (controller.signal.aborted) answer.reason = "stopped";
      else if (running === controller) fail(error, answer, asked, text);
    }
    if (running !== controller) return;   // a new chat was begun meanwhile
    answer.end();
    if (answer.text) messages.push({ role: "assistant", content: answer.text });
    else if (messages.at(-1)?.role === "user") {
      messages.pop();
      if (!answer.steps.children.length) answer.node.remove();
    }
    running = null;
    busy(false);
  }

  function fail(error, answer, asked, text) {
    answer.reason = "failed";
    if (error.status === 401) $("settings").open = true;
    if (!answer.text && !answer.steps.children.length) {
      asked.remove();
      if (!input.value) input.value = text;
    }
    const lost = error instanceof TypeError;
    notice(lost ? "The server cannot be reached." : error.message, lost ? "无法连接服务器。" : error.message);
  }

  function busy(on) {
    $("send").hidden = on;
    $("stop").hidden = !on;
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
      const ids = (await response.json()).data.map((entry) => entry.id);
      model.replaceChildren(...ids.map((id) => new Option(id, id)));
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

  function newChat() {
    running?.abort();
    running = null;
    messages = [];
    for (const node of [...log.children]) if (node.id !== "welcome") node.remove();
    $("welcome").hidden = false;
    busy(false);
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
    }
  });
  input.addEventListener("input", grow);
  $("stop").addEventListener("click", () => running?.abort());
  $("new-chat").addEventListener("click", newChat);
  model.addEventListener("change", () => sessionStorage.setItem("riverrun.model", model.value));
  key.addEventListener("change", () => { sessionStorage.setItem("riverrun.key", key.value); loadModels(); });
  document.addEventListener("click", (event) => { if (!$("settings").contains(event.target)) $("settings").open = false; });
  function translate() {
    input.placeholder = input.dataset[document.documentElement.dataset.lang];
    input.setAttribute("aria-label", input.placeholder);
  }
  document.addEventListener("language", translate);
  translate();
  key.value = sessionStorage.getItem("riverrun.key") || "";
  loadModels();
  input.focus();
})();
