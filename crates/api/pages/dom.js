// Making elements without ever parsing markup: text stays text, whoever wrote it.

const SVG = "http://www.w3.org/2000/svg";

/// An element. `properties` are set as properties, `data` and `aria-…` as attributes; children are nodes or text.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(made.dataset, value);
    else if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

const ICONS = {
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12.5l4.5 4.5L19 7.5",
  retry: "M20 11a8 8 0 1 0-2.3 6.3M20 4v7h-7",
  edit: "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
  tool: "M14.5 6a4.5 4.5 0 0 0-5.9 5.6L3.5 16.7a2 2 0 0 0 2.8 2.8l5.1-5.1A4.5 4.5 0 0 0 17 8.5l-3 3-2.5-2.5z",
  thought: "M9 18h6M10 21h4M12 3a6 6 0 0 0-3.5 10.9c.6.5 1 1.2 1 2.1h5c0-.9.4-1.6 1-2.1A6 6 0 0 0 12 3z",
};

/// A small picture, hidden from screen readers.
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "line");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/// A button that is only a picture; `label` is what it is called.
export function iconButton(name, label, onclick) {
  return element("button", { className: "icon-button", type: "button", title: label, "aria-label": label, onclick }, icon(name));
}

/// A button that copies what `text()` returns, and shows that it did.
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const done = await copy(text());
    button.replaceChildren(icon(done ? "check" : "copy"));
    button.title = done ? "Copied" : "The browser would not copy";
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.title = label;
    }, 1600);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages over plain HTTP from another machine have no clipboard of that kind.
    const area = element("textarea", { value: text, className: "visually-hidden" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/// Fills a `.meter` to a share of 0 to 1.
export function fill(meter, share) {
  meter.style.setProperty("--share", share);
  meter.setAttribute("aria-valuenow", Math.round(share * 100));
}
