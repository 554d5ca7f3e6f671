// The map: points on a canvas, coloured by class, self-influence or decision; a frame chooses some, which are listed.
// The address holds colours and frame: everything else follows from them.

import { ask } from "./api.js";
import { $, announce, begin, fail, hash, ready } from "./common.js";
import { TEXT, say } from "./strings.js";
import { element, name, number, seen } from "./view.js";

const PAGE = 24, NAMED = 12;
const MARGIN = 14, NEAR = 14; // pixels
const BY = ["label", "norm", "state"];
// Okabe and Ito's colours, and four more, each at least 3:1 against both grounds.
const CLASSES = ["#0a7cc4", "#c85a00", "#00946b", "#b5608f", "#8a7a00", "#a8433a", "#5a73d8", "#2f8f9d", "#8f6bb8", "#6f8a2d", "#9a6a3c", "#78828c"];
const STATES = { keep: "#00946b", relabel: "#0a7cc4", remove: "#c85a00", later: "#8a7a00", open: "#78828c" };
const SHAPES = { keep: "circle", relabel: "triangle", remove: "cross", later: "square", open: "circle" };
let info = null, points = null, state = read(), cursor = { x: .5, y: .5, r: .06 }, drag = null, shown = 0, listed = 0;

function read() {
  const found = hash();
  const box = (found.get("box") ?? "").split(",").map(Number);
  const whole = box.length === 4 && box.every(Number.isFinite);
  return { by: BY.includes(found.get("by")) ? found.get("by") : "label", box: whole ? box : null };
}

function go(changes) {
  state = { ...state, ...changes };
  const box = state.box ? `&box=${state.box.map((one) => Number(one.toFixed(3))).join(",")}` : "";
  history.pushState(null, "", `#by=${state.by}${box}`);
  if (state.box) state.box = read().box;
  update();
}

const canvas = $("canvas");
const side = () => canvas.clientWidth - 2 * MARGIN;
const screen = (x, y) => [MARGIN + x * side(), MARGIN + y * side()];
const place = (event) => {
  const at = canvas.getBoundingClientRect();
  return [(event.clientX - at.left - MARGIN) / side(), (event.clientY - at.top - MARGIN) / side()];
};
const inside = ([x0, y0, x1, y1]) => points.ids.map((_, i) => i).filter((i) => points.x[i] >= x0 && points.x[i] <= x1 && points.y[i] >= y0 && points.y[i] <= y1);
const className = (value) => (value === null ? TEXT.noLabel : info.class_names?.[value] ?? String(value));
const frame = () => [cursor.x - cursor.r, cursor.y - cursor.r, cursor.x + cursor.r, cursor.y + cursor.r];

// From dark blue to yellow, as lightness grows: viridis at five places.
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function ramp(share) {
  const at = Math.min(share * 4, 3.999), i = Math.floor(at);
  return `rgb(${RAMP[i].map((one, j) => Math.round(one + (at - i) * (RAMP[i + 1][j] - one))).join(",")})`;
}

function norms() {
  const logs = points.norms.map((one) => Math.log(one * one + 1e-12)).sort((a, b) => a - b);
  const at = (share) => logs[Math.round(share * (logs.length - 1))];
  return { low: at(.02), high: Math.max(at(.98), at(.02) + 1e-9) };
}

function classes() {
  return [...new Set(points.labels ?? [])].sort((a, b) => a - b);
}

// How a point is drawn: colour and shape.
function looks() {
  if (state.by === "norm") {
    const { low, high } = norms();
    return (i) => [ramp(Math.max(0, Math.min(1, (Math.log(points.norms[i] ** 2 + 1e-12) - low) / (high - low)))), "circle"];
  }
  if (state.by === "state") return (i) => [STATES[points.decisions[i] ?? "open"], SHAPES[points.decisions[i] ?? "open"]];
  const places = new Map(classes().map((one, i) => [one, Math.min(i, NAMED - 1)]));
  return (i) => [CLASSES[points.labels ? places.get(points.labels[i]) : 0], "circle"];
}

function mark(context, x, y, colour, shape, size) {
  context.fillStyle = context.strokeStyle = colour;
  context.lineWidth = 2;
  context.beginPath();
  if (shape === "circle") context.arc(x, y, size, 0, 7);
  else if (shape === "square") context.rect(x - size, y - size, 2 * size, 2 * size);
  else if (shape === "triangle") [[0, -1.3], [1.2, 1], [-1.2, 1]].forEach(([a, b]) => context.lineTo(x + a * size, y + b * size));
  else {
    for (const a of [-1, 1]) { context.moveTo(x - size, y - a * size); context.lineTo(x + size, y + a * size); }
    context.stroke();
    return;
  }
  context.fill();
}

function draw() {
  if (!points || !canvas.clientWidth) return;
  const scale = devicePixelRatio, height = Math.min(1, Math.max(...points.y)) * side() + 2 * MARGIN;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d"), look = looks();
  context.scale(scale, scale);
  const size = points.ids.length > 1500 ? 2 : 3;
  const order = points.ids.map((_, i) => i);
  if (state.by === "state") order.sort((a, b) => (points.decisions[a] ? 1 : 0) - (points.decisions[b] ? 1 : 0));
  for (const i of order) mark(context, ...screen(points.x[i], points.y[i]), ...look(i), state.by === "state" && points.decisions[i] ? size + 1.5 : size);
  const ink = getComputedStyle(document.body).color;
  const rectangle = (box, dashes) => {
    context.strokeStyle = ink;
    context.lineWidth = 1.5;
    context.setLineDash(dashes);
    context.strokeRect(...screen(box[0], box[1]), (box[2] - box[0]) * side(), (box[3] - box[1]) * side());
  };
  if (drag) rectangle(drag, [4, 3]);
  else if (state.box) rectangle(state.box, []);
  if (document.activeElement === canvas && !drag) rectangle(frame(), [2, 4]);
}

function legend() {
  const line = (colour, shape, text) => {
    const swatch = element("canvas", { width: 14, height: 14, "aria-hidden": "true" });
    mark(swatch.getContext("2d"), 7, 7, colour, shape, 4.5);
    return element("li", {}, swatch, text);
  };
  let lines;
  if (state.by === "norm") {
    const { low, high } = norms(), strip = element("canvas", { width: 100, height: 8, class: "ramp", "aria-hidden": "true" });
    const context = strip.getContext("2d");
    for (let i = 0; i < 100; i++) { context.fillStyle = ramp(i / 99); context.fillRect(i, 0, 1, 8); }
    lines = [element("li", {}, number(Math.exp(low)), strip, number(Math.exp(high)))];
  } else if (state.by === "state") {
    lines = Object.keys(STATES).map((one) => line(STATES[one], SHAPES[one], one === "open" ? TEXT.open : TEXT[one === "relabel" ? "relabelled" : one]));
  } else {
    const every = classes();
    lines = every.slice(0, NAMED).map((one, i) => line(CLASSES[i], "circle", i === NAMED - 1 && every.length > NAMED ? say("otherClasses", { first: className(one) }) : className(one)));
  }
  $("legend").replaceChildren(...lines);
}

async function update() {
  for (const one of document.querySelectorAll("[name=by]")) one.checked = one.value === state.by;
  legend();
  draw();
  shown = 0;
  await cards();
}

function nearest(some, x, y) {
  const far = (i) => (points.x[i] - x) ** 2 + (points.y[i] - y) ** 2;
  return some.reduce((best, i) => (best === null || far(i) < far(best) ? i : best), null);
}

async function cards() {
  const some = state.box ? inside(state.box) : [], asked = ++listed;
  $("chosen").hidden = !state.box;
  $("none").disabled = !state.box;
  $("chosen-count").textContent = some.length ? say("chosenSome", { count: some.length }) : TEXT.chosenNone;
  announce($("chosen-count").textContent);
  const here = some.slice(shown, shown + Math.min(PAGE, info.max_queries)).map((i) => points.ids[i]);
  $("previous").disabled = !shown;
  $("next").disabled = shown + PAGE >= some.length;
  $("place").textContent = here.length ? say("place", { first: shown + 1, last: shown + here.length, total: some.length }) : "";
  let found = [];
  try {
    if (here.length) found = (await ask(`/v1/items?ids=${here.join(",")}`)).items;
  } catch (error) {
    fail(error);
  }
  if (asked !== listed) return;
  const wide = found.some((one) => one.rendered && one.rendered.kind !== "image");
  const place = $("chosen").querySelector("ol");
  place.classList.toggle("wide", wide);
  place.replaceChildren(...found.map((one) => {
    const label = name(one, "label");
    const text = label === null ? say("neighbourPlain", { id: one.id }) : say("neighbour", { id: one.id, label });
    return element("li", {}, element("a", { class: "card", href: `/#id=${one.id}`, "aria-label": text }, seen(one, ""),
      element("span", { class: "facts" }, element("b", {}, label ?? ""), ` #${one.id}`)));
  }));
}

function choose(box) {
  cursor = { ...cursor, x: (box[0] + box[2]) / 2, y: (box[1] + box[3]) / 2 };
  go({ box });
}

function tell() {
  const some = inside(frame()), near = nearest(some, cursor.x, cursor.y);
  const label = near === null || !points.labels ? "" : `, ${className(points.labels[near])}`;
  announce(near === null ? say("frame", { count: 0 })
    : say("frameNear", { count: some.length, what: `${say("saidBare", { id: points.ids[near] })}${label}` }));
}

function listen() {
  for (const one of document.querySelectorAll("[name=by]")) one.addEventListener("change", () => go({ by: one.value }));
  $("none").addEventListener("click", () => go({ box: null }));
  $("previous").addEventListener("click", () => { shown -= PAGE; cards(); });
  $("next").addEventListener("click", () => { shown += PAGE; cards(); });
  canvas.addEventListener("pointerdown", (event) => {
    const [x, y] = place(event);
    canvas.setPointerCapture(event.pointerId);
    drag = [x, y, x, y];
    drag.from = [x, y];
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [x, y] = place(event), [a, b] = drag.from;
    drag = Object.assign([Math.min(a, x), Math.min(b, y), Math.max(a, x), Math.max(b, y)], { from: [a, b] });
    draw();
  });
  canvas.addEventListener("pointerup", () => {
    if (!drag) return;
    let box = [...drag];
    drag = null;
    if (Math.max(box[2] - box[0], box[3] - box[1]) * side() < 4) { // a click: the nearest point
      const i = nearest(points.ids.map((_, j) => j), box[0], box[1]);
      const far = Math.hypot(points.x[i] - box[0], points.y[i] - box[1]) * side();
      if (far > NEAR) return go({ box: null });
      box = [points.x[i] - .001, points.y[i] - .001, points.x[i] + .001, points.y[i] + .001];
    }
    choose(box);
  });
  canvas.addEventListener("pointercancel", () => { drag = null; draw(); });
  for (const one of ["focus", "blur"]) canvas.addEventListener(one, draw);
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !points) return;
    const step = event.shiftKey ? .1 : .02;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const clip = (value, low, high) => Math.max(low, Math.min(high, value));
    if (moves[event.key]) cursor = { ...cursor, x: clip(cursor.x + moves[event.key][0], 0, 1), y: clip(cursor.y + moves[event.key][1], 0, 1) };
    else if (event.key === "+" || event.key === "=") cursor.r = clip(cursor.r * 1.25, .01, .5);
    else if (event.key === "-") cursor.r = clip(cursor.r / 1.25, .01, .5);
    else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return choose(frame());
    } else if (event.key === "Escape") return go({ box: null });
    else return;
    event.preventDefault();
    draw();
    tell();
  });
  addEventListener("popstate", () => { state = read(); if (points) update(); });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

async function show() {
  try {
    info ??= await ask("/v1/index");
    await ready("/v1/map", (status) => say("mapMissingHint", { points: status.points }));
    points = await ask("/v1/map/points");
    const share = say("share", { percent: Math.round(100 * points.explained) });
    $("drawn-from").textContent = say("drawnFrom", { points: points.ids.length, of: points.of, way: TEXT.ways[points.way], share });
    canvas.setAttribute("aria-label", say("canvas", { points: points.ids.length }));
    document.querySelector("[name=by][value=label]").disabled = !points.labels;
    if (!points.labels && state.by === "label") state.by = "norm";
    $("drawn").hidden = false;
    await update();
    $("main").setAttribute("aria-busy", "false");
  } catch (error) {
    fail(error);
  }
}

begin("mapTitle", show);
listen();
show();
