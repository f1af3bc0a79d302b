(() => {
  "use strict";
  const EVERY = 1000, KEPT = 300;   // milliseconds, points
  const WIDTH = 480, HEIGHT = 150, LEFT = 44, BOTTOM = 18;
  const $ = (id) => document.getElementById(id);
  const { make, both } = dom;
  const models = new Map();         // name -> {section, tiles, charts, points}

  function svg(tag, attributes, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const short = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(2))));

  // ---- one chart: lines over the last minutes
  class Chart {
    constructor(title, lines) {
      this.lines = lines;           // [key, en, zh]
      this.svg = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
      const legend = make("ul", "legend", ...lines.map(([, en, zh], n) => {
        const box = svg("svg", { viewBox: "0 0 10 10" }, svg("rect", { width: 10, height: 10, class: `f${n}` }));
        return make("li", "", box, both(en, zh));
      }));
      this.node = make("figure", "", make("figcaption", "", title), legend, this.svg);
    }
    draw(points) {
      const top = Math.max(1e-9, ...points.flatMap((point) => this.lines.map(([key]) => point[key])));
      const x = (n) => LEFT + ((KEPT - points.length + n) / (KEPT - 1)) * (WIDTH - LEFT);
      const y = (value) => (HEIGHT - BOTTOM) * (1 - (0.92 * value) / top);
      const out = [];
      for (const value of [0, top / 2, top]) {
        out.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value) }));
        out.push(svg("text", { class: "quiet", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)));
      }
      for (const [text, minutes] of [["-5 min", 5], ["-2.5 min", 2.5], ["0", 0]]) {
        const anchor = minutes ? (minutes === 5 ? "start" : "middle") : "end";
        out.push(svg("text", { class: "quiet", x: WIDTH - (minutes / 5) * (WIDTH - LEFT), y: HEIGHT - 3, "text-anchor": anchor }, text));
      }
      this.lines.forEach(([key], n) => {
        const path = points.map((point, place) => `${place ? "L" : "M"}${x(place).toFixed(1)} ${y(point[key]).toFixed(1)}`).join("");
        if (path) out.push(svg("path", { class: `curve s${n}`, d: path }));
      });
      this.svg.replaceChildren(...out);
    }
  }

  class Model {
    constructor(name) {
      this.points = [];
      this.last = null;
      this.tiles = make("dl", "tiles");
      this.charts = [
        new Chart(both("Tokens a second", "每秒词元"), [["answers", "of answers", "生成"], ["prompts", "of prompts", "提示"]]),
        new Chart(both("Requests", "请求"), [["running", "running", "运行中"], ["waiting", "waiting", "等待中"]]),
        new Chart(both("Cache, %", "缓存 %"), [["used", "in use", "使用中"], ["cached", "kept for later", "保留"]]),
      ];
      this.section = make("section", "", make("h2", "", name), this.tiles, make("div", "charts", ...this.charts.map((chart) => chart.node)));
      $("models").append(this.section);
    }
    take(now, state) {
      const seconds = this.last ? (now - this.last.now) / 1000 : 0;
      const rate = (key) => (seconds ? Math.max(0, state[key] - this.last.state[key]) / seconds : 0);
      const point = {
        answers: rate("computed_answer_tokens"), prompts: rate("computed_prompt_tokens"),
        running: state.num_requests_running, waiting: state.num_requests_waiting,
        used: 100 * state.kv_cache_usage_perc, cached: 100 * state.kv_cache_cached_perc,
      };
      this.last = { now, state };
      if (seconds) this.points.push(point);
      if (this.points.length > KEPT) this.points.shift();
      const hits = state.prefix_cache_queries ? (100 * state.prefix_cache_hits) / state.prefix_cache_queries : 0;
      const values = [
        [both("Running", "运行中"), point.running, "running"], [both("Waiting", "等待中"), point.waiting, "waiting"],
        [both("Tokens a second", "每秒词元"), short(point.answers), "rate"],
        [both("Cache in use", "缓存使用"), `${point.used.toFixed(1)} %`, "used"],
        [both("Prefix hits", "前缀命中"), `${hits.toFixed(1)} %`, "hits"],
        [both("Tokens answered", "已生成词元"), state.generation_tokens.toLocaleString("en"), "generated"],
        [both("First token, mean", "首词元平均"), state.requests_first ? `${state.mean_first_seconds.toFixed(3)} s` : "–", "first"],
        [both("Preempted", "被抢占"), state.num_preemptions, "preempted"],
      ];
      this.tiles.replaceChildren(...values.map(([label, value, name]) => {
        const shown = make("dd", "", String(value));
        shown.dataset.name = name;
        return make("div", "", make("dt", "", label), shown);
      }));
      for (const chart of this.charts) chart.draw(this.points);
    }
  }

  function notice(...content) {
    $("notices").replaceChildren(...(content.length ? [make("p", "notice bad", ...content)] : []));
  }
  async function ask() {
    const key = sessionStorage.getItem("riverrun.key");
    try {
      const response = await fetch("status", { headers: key ? { "Authorization": "Bearer " + key } : {} });
      if (response.status === 401) notice(both("This server needs an API key: enter it under Settings of the chat page, in this tab.", "本服务器需要 API 密钥：请先在此标签页的对话页设置中输入。"));
      else if (!response.ok) notice(`${response.status} ${response.statusText}`);
      else {
        const body = await response.json(), now = performance.now();
        notice();
        for (const [name, state] of Object.entries(body.models)) {
          if (!models.has(name)) models.set(name, new Model(name));
          models.get(name).take(now, state);
        }
        if (!models.size) notice(both("No model of this server keeps counts.", "本服务器没有可统计的模型。"));
      }
    } catch { notice(both("The server cannot be reached.", "无法连接服务器。")); }
    setTimeout(ask, EVERY);
  }
  ask();
})();
