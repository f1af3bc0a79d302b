(() => {
  "use strict";
  const root = document.documentElement;
  const recall = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const keep = (key, value) => { try { localStorage.setItem(key, value); } catch { /* a page from disk may have no storage */ } };
  const language = document.getElementById("switch-language");
  const theme = document.getElementById("switch-theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";

  function setLanguage(lang) {
    root.dataset.lang = root.lang = lang;
    const title = document.querySelector("title");
    document.title = title.dataset[lang] || document.title;
    language.textContent = lang === "zh" ? "EN" : "中文";
    language.title = lang === "zh" ? "Switch to English" : "切换到中文";
    theme.title = lang === "zh" ? "明暗切换" : "Dark or light";
    theme.setAttribute("aria-label", theme.title);
    document.dispatchEvent(new CustomEvent("language", { detail: lang }));
  }

  const wanted = recall("riverrun.language") || (root.dataset.pick === "auto" ? navigator.language : root.dataset.pick);
  if (recall("riverrun.theme")) root.dataset.theme = recall("riverrun.theme");
  language.addEventListener("click", () => {
    setLanguage(root.dataset.lang === "zh" ? "en" : "zh");
    keep("riverrun.language", root.dataset.lang);
  });
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    keep("riverrun.theme", root.dataset.theme);
  });
  language.parentElement.hidden = false;
  setLanguage(String(wanted).toLowerCase().startsWith("zh") ? "zh" : "en");
})();
