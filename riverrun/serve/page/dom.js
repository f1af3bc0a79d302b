// What the pages make elements with: everything shown is set as text, never as HTML.
const dom = (() => {
  "use strict";
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
  return { make, both };
})();
