// What is seen, made of elements and text nodes only: labels and texts of a dataset are never read as HTML.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function number(value) {
  const size = Math.abs(value);
  const text = size >= 0.0005 && size < 10 ? value.toFixed(3) : value === 0 ? "0" : value.toPrecision(3);
  return text.replace("-", "−");
}

export function name(sample, kind) {
  const named = sample[`${kind}_name`];
  if (named) return named;
  const value = sample[kind];
  return value === null || value === undefined ? null : String(value);
}

export function seen(sample, title) {
  const shown = sample.rendered;
  if (!shown) return element("div", { class: "seen none" }, "no picture");
  if (shown.kind === "image") {
    const smooth = Math.max(...shown.shape) > 64;
    return element("div", { class: smooth ? "seen smooth" : "seen" }, element("img", { src: shown.data, alt: title }));
  }
  if (shown.kind === "text") return element("div", { class: "seen wide" }, element("p", {}, shown.data));
  const rows = Object.entries(shown.data).map(([key, value]) =>
    element("tr", {}, element("th", { scope: "row" }, key),
      element("td", {}, typeof value === "number" && !Number.isInteger(value) ? number(value) : String(value))));
  return element("div", { class: "seen wide" }, element("table", {}, element("tbody", {}, ...rows)));
}

function facts(sample) {
  const label = name(sample, "label");
  const prediction = name(sample, "prediction");
  const line = element("span", { class: "facts" });
  if (label !== null) line.append(element("b", {}, label));
  if (prediction !== null && prediction !== label) {
    line.append(label === null ? "" : ", ", element("span", { class: "wrong" }, `predicted ${prediction}`));
  }
  return line;
}

export function card(sample, { rank, side, own, again } = {}) {
  const label = name(sample, "label");
  const said = [`sample ${sample.id}`, label && `label ${label}`];
  let kind = "card";
  if (own !== undefined && own !== null && sample.label !== null) kind += sample.label === own ? " same" : " other";
  const parts = [seen(sample, `sample ${sample.id}${label ? `, ${label}` : ""}`)];
  if (rank !== undefined) {
    said.unshift(`${side} ${rank}`);
    said.push(`score ${number(sample.score)}, ${sample.exact ? "exact" : "estimated"}`);
    parts.push(element("span", { class: "score", title: sample.exact ? "exact" : "estimated" }, (sample.exact ? "" : "≈") + number(sample.score)));
  }
  parts.push(facts(sample));
  const mark = again?.(sample.id);
  if (mark) {
    said.push(mark);
    parts.push(element("span", { class: "again" }, mark));
  }
  const columns = Object.entries(sample.columns || {}).map(([key, value]) => `${key} ${value}`).join(", ");
  parts.push(element("span", { class: "facts" }, `#${sample.id}${columns ? ` · ${columns}` : ""}`));
  const button = element("button", { type: "button", class: kind, title: "Make it the query" }, ...parts);
  button.dataset.id = sample.id;
  button.setAttribute("aria-label", `${said.filter(Boolean).join(", ")}. Make it the query.`);
  return element("li", {}, button);
}

export function cards(list, samples, options = {}) {
  const wide = samples.some((sample) => sample.rendered && sample.rendered.kind !== "image");
  list.classList.toggle("wide", wide);
  list.replaceChildren(...samples.map((sample, i) =>
    card(sample, options.side ? { rank: i + 1, ...options } : options)));
  if (!samples.length) list.append(element("li", { class: "none" }, options.empty || "None."));
}

export function ghosts(list, count) {
  list.replaceChildren(...Array.from({ length: Math.min(count, 12) }, () =>
    element("li", { "aria-hidden": "true" }, element("div", { class: "ghost" }))));
}

// Which question the kernel answers and, once there is an answer, how far it can be trusted.
export function asked(place, words, answer) {
  place.replaceChildren(...(words ? [element("p", {}, "The ", element("b", {}, words.title), ` ${words.finds}.`)] : []));
  if (!answer) return;
  const trust = answer.proved ? "Proved: the true neighbours"
    : words?.estimated ? "Estimated by whitened rows"
    : answer.checked ? "Scores exact, candidates by sketch" : "Estimated from sketches";
  const checked = answer.checked ? `; ${answer.checked.toLocaleString("en")} samples checked exactly` : "";
  place.append(element("p", { class: "hint" }, `${trust}${checked}.`));
}

// Marks of samples that another kernel's answer to the same query has, too, on one of its sides.
export function marks(side, other) {
  const here = new Set(other[side].map((one) => one.id));
  const far = side === "proponents" ? "opponents" : "proponents";
  const there = new Set(other[far].map((one) => one.id));
  return (id) => (here.has(id) ? "in both" : there.has(id) ? `${far.slice(0, -1)} by the other kernel` : null);
}

export function queryCard(place, sample, extra) {
  const lines = [];
  const add = (term, value) => { if (value !== null && value !== undefined) lines.push(element("dt", {}, term), element("dd", {}, value)); };
  add("Query", sample.id === null ? "your own" : `training sample ${sample.id}`);
  add("Label", name(sample, "label"));
  add("Prediction", name(sample, "prediction"));
  add("Searched", extra.selected === extra.rows ? `${extra.rows.toLocaleString("en")} samples`
    : `${extra.selected.toLocaleString("en")} of ${extra.rows.toLocaleString("en")} samples`);
  if (sample.label !== null || sample.prediction !== null) add("Frames", "blue: the query's class, dashed orange: another");
  place.replaceChildren(seen(sample, "the query"), element("dl", {}, ...lines));
}

const STAGES = {
  waited: "waiting", labels: "prediction", gradients: "gradient", sketch: "sketch", search: "search",
  exact: "exact checks", describe: "labels", render: "pictures",
};

export function timing(body, times) {
  const stages = { waited: times.waited, ...times.stages };
  const most = Math.max(...Object.values(stages), 1e-9);
  const rows = Object.entries(stages).map(([key, seconds]) => {
    const bar = element("div", { class: "bar" });
    bar.style.width = `${(100 * seconds) / most}%`;
    return element("tr", {}, element("th", { scope: "row" }, STAGES[key] || key), element("td", { "aria-hidden": "true" }, bar),
      element("td", {}, `${(1000 * seconds).toFixed(1)} ms`));
  });
  rows.push(element("tr", {}, element("th", { scope: "row" }, "total"), element("td"),
    element("td", {}, `${(1000 * times.total).toFixed(1)} ms`)));
  body.replaceChildren(...rows);
}
