// State lives in the address (after #, so that it is not sent to any server); everything else follows from it.

import { ask, askLatest } from "./api.js";
import { asked, cards, element, ghosts, marks, name, queryCard, timing } from "./view.js";
import { accepted, decode, encode, readFile, takesPictures } from "./upload.js";

const $ = (id) => document.getElementById(id);
const PAGE = 24;
const SIDES = ["proponents", "opponents"];
const DEFAULTS = { id: null, input: null, label: "", kernel: null, beside: null, k: 10, side: "both", exact: true, certify: false, classes: [], offset: 0 };
let info = null;
let state = read();

function read() {
  const found = new URLSearchParams(location.hash.slice(1));
  const whole = (text, least) => (/^\d+$/.test(text ?? "") && Number(text) >= least ? Number(text) : null);
  return {
    id: whole(found.get("id"), 0),
    input: found.get("input"),
    label: found.get("label") ?? "",
    kernel: found.get("kernel"),
    beside: found.get("beside"),
    k: whole(found.get("k"), 1) ?? DEFAULTS.k,
    side: ["both", "proponents", "opponents"].includes(found.get("side")) ? found.get("side") : DEFAULTS.side,
    exact: found.get("exact") !== "0",
    certify: found.get("certify") === "1",
    classes: (found.get("classes") ?? "").split(",").filter((text) => text !== ""),
    offset: whole(found.get("offset"), 0) ?? 0,
  };
}

function address(wanted) {
  const out = new URLSearchParams();
  for (const key of Object.keys(DEFAULTS)) {
    const value = wanted[key];
    if (JSON.stringify(value) === JSON.stringify(DEFAULTS[key]) || value === null) continue;
    out.set(key, typeof value === "boolean" ? Number(value) : Array.isArray(value) ? value.join(",") : value);
  }
  const text = out.toString();
  return text ? `#${text}` : location.pathname;
}

function go(changes) {
  state = { ...state, ...changes };
  history.pushState(null, "", address(state));
  show();
}

// The kernel asked for, or the index's own: links may name one that this index does not have.
function kernel() {
  return info?.kernels.includes(state.kernel) ? state.kernel : info?.kernel;
}

// The kernel whose answer stands beside that one's, or none.
function beside() {
  return info?.kernels.includes(state.beside) && state.beside !== kernel() ? state.beside : null;
}

const shown = () => [kernel(), beside()].filter(Boolean);
const title = (one) => info.wording[one]?.title ?? one;
const estimated = (one) => info.wording[one]?.estimated ?? false;

// What cannot be checked is not offered, and the reason is given.
function fillChecks() {
  const estimates = info ? shown().filter(estimated) : [];
  const none = estimates.length > 0 && estimates.length === shown().length;
  $("exact").disabled = $("certify").disabled = none;
  $("exact").checked = state.exact && !none;
  $("certify").checked = state.certify && !none;
  $("estimated").hidden = !estimates.length;
  $("estimated").textContent = `Scores of the ${estimates.map(title).join(" and the ")} are estimates by whitened rows: there is no exact value to check them by.`;
}

function fillControls() {
  $("row").value = state.id ?? "";
  $("kernel").value = kernel() ?? "";
  $("k").value = state.k;
  fillChecks();
  if (info) {
    $("beside").replaceChildren(element("option", { value: "" }, "nothing"),
      ...info.kernels.filter((one) => one !== kernel()).map((one) => element("option", { value: one }, title(one))));
    $("beside").value = beside() ?? "";
  }
  $("label").value = state.label;
  for (const radio of document.querySelectorAll("[name=side]")) radio.checked = radio.value === state.side;
  for (const box of document.querySelectorAll("#classes input")) box.checked = state.classes.includes(box.value);
}

// What a query of one's own must be.
function hint(form) {
  if (form.tokenizer || form.kind === "text") return "";
  const array = form.kind !== "array" ? "" : form.shape.length === 1 && form.shape[0] === null ? "numbers of any length"
    : `numbers of shape (${form.shape.map((n) => n ?? "any").join(", ")})`;
  const files = array ? `${array} (.npy, .json)` : "a .json file";
  if (form.prepares) return `A PNG or JPEG picture, which the job prepares itself, or ${files}.`;
  if (takesPictures(form)) return `A PNG or JPEG picture, scaled to ${form.picture.slice(0, 2).join(" × ")}, black to white as ${form.low} to ${form.high}, or ${files}.`;
  return `${form.why_no_picture ? `${form.why_no_picture} Until then: ` : "Expected: "}${files}.`;
}

function start() {
  const gradients = info.kernels.length > 1;
  $("about").textContent = `${info.samples.toLocaleString("en")} training samples, ${gradients ? "gradients" : `${info.metric} rows`} of ${info.parameters.toLocaleString("en")} numbers (${info.backend}), ${info.sketch.kind} of ${info.dim}, ${info.factory}`;
  $("kernel").replaceChildren(...info.kernels.map((one) => element("option", { value: one }, title(one))));
  $("beside-part").hidden = info.kernels.length < 2;
  if (!gradients) document.querySelector("label[for=kernel]").textContent = "Metric";
  $("k").max = info.max_k;
  $("certify-part").hidden = !info.certifiable;
  const named = (one) => info.class_names?.[one] ?? String(one);
  $("class-part").hidden = info.classes.length < 2 || info.classes.length > 200;
  $("classes").replaceChildren(...info.classes.map((one) =>
    element("label", {}, element("input", { type: "checkbox", value: String(one) }), named(one))));
  $("label").replaceChildren(element("option", { value: "" }, "what the model predicts"),
    ...info.classes.map((one) => element("option", { value: String(one) }, named(one))));
  const form = info.input;
  const words = form.kind === "text" || form.tokenizer;
  $("own").hidden = !(form.kind === "array" || words || form.prepares);
  $("text-part").hidden = !words;
  $("file").accept = accepted(form);
  $("file-label").textContent = takesPictures(form) ? "Or a picture of your own" : words ? "Or a text file" : "Or a sample of your own";
  $("drop").textContent = words ? "Drop a text file here" : "Drop or paste a file here";
  $("own-hint").textContent = hint(form);
}

function request(one) {
  const body = { k: Math.min(state.k, info.max_k), kernel: one === info.kernel ? null : one, render: true };
  if (!state.exact) body.rerank = 0;
  if (state.exact && state.certify && info.certifiable && !estimated(one)) body.certify = true;
  if (state.classes.length) body.where = { label: state.classes.map(Number) };
  if (state.input !== null) {
    const own = decode(state.input, info.input);
    if (info.input.tokenizer && typeof own === "string") body.texts = [own];
    else body.inputs = [own];
    if (body.inputs && state.label !== "") body.labels = [Number(state.label)];
  } else body.ids = [state.id];
  return body;
}

function busy(on) {
  $("main").setAttribute("aria-busy", String(on));
}

function fail(error) {
  busy(false);
  if (error.name === "AbortError") return;
  for (const id of ["query", "shared", "answers", "browse", "timing"]) $(id).hidden = true;
  $("error").hidden = false;
  $("error-text").textContent = error.message;
  $("status").textContent = "";
}

async function show() {
  $("error").hidden = true;
  fillControls();
  try {
    if (info === null) {
      info = await ask("/v1/index");
      start();
      fillControls();
    }
    $("label-part").hidden = state.input === null || !info.classes.length || info.input.tokenizer;
    if (state.id === null && state.input === null) await browse();
    else await explain();
  } catch (error) {
    fail(error);
  }
}

// The places of one kernel's answer: the second one's names begin with "other-".
function place(number) {
  const prefix = number ? "other-" : "";
  return { answer: $(`${prefix}answer`), ...Object.fromEntries(SIDES.map((side) => [side, $(prefix + side)])) };
}

function waitFor(kernels) {
  $("answers").hidden = false;
  $("shared").hidden = true;
  $("answers").classList.toggle("pair", kernels.length > 1);
  for (const number of [0, 1]) {
    const here = place(number);
    const words = info.wording[kernels[number]];
    here.answer.hidden = number >= kernels.length;
    asked(here.answer.querySelector(".asked"), words);
    for (const side of SIDES) {
      here[side].hidden = here.answer.hidden || (state.side !== "both" && state.side !== side);
      here[side].querySelector("small").textContent = words ? words[side] : `${side === "proponents" ? "most" : "least"} similar by ${info.metric}`;
      here[side].setAttribute("aria-label", kernels.length > 1 && words ? `${side} by the ${words.title}` : side);
      ghosts(here[side].querySelector("ol"), here[side].hidden ? 0 : state.k);
    }
  }
}

// How many samples two answers have in common.
function common(answers) {
  const counts = SIDES.map((side) => {
    const there = new Set(answers[1][side].map((one) => one.id));
    return `${answers[0][side].filter((one) => there.has(one.id)).length} of ${answers[0][side].length} ${side}`;
  });
  return `In both answers: ${SIDES.map((side, i) => (state.side === "both" || state.side === side ? counts[i] : null)).filter(Boolean).join(", ")}.`;
}

async function explain() {
  const kernels = shown();
  $("browse").hidden = true;
  waitFor(kernels);
  busy(true);
  $("status").textContent = "Searching";
  document.title = `${state.id === null ? "your own query" : `sample ${state.id}`} · gradindex`;
  const found = await askLatest("/v1/explain", ...kernels.map(request));
  const answers = found.map((one) => one.answers[0]);
  const [{ query }] = answers;
  $("query").hidden = false;
  queryCard($("query"), query, found[0]);
  const own = query.label ?? query.prediction;
  answers.forEach((answer, number) => {
    const here = place(number), other = answers[1 - number];
    asked(here.answer.querySelector(".asked"), info.wording[kernels[number]], answer);
    for (const side of SIDES) {
      const again = other && marks(side, other);
      cards(here[side].querySelector("ol"), answer[side], { side: side.slice(0, -1), own, again, empty: "There are none." });
    }
  });
  $("shared").hidden = answers.length < 2;
  $("shared").textContent = answers.length < 2 ? "" : common(answers);
  $("timing").hidden = false;
  timing($("stages"), found[0].timing);
  const notes = answers.length < 2 ? [] : [`Of the ${title(kernels[0])}.`];
  if (found[0].timing.batch > 1) notes.push(`Shared with ${found[0].timing.batch - 1} other queries.`);
  $("batch").textContent = notes.join(" ");
  busy(false);
  $("status").textContent = [...answers.map((answer, number) => summary(answer, found[number], answers.length > 1 ? title(kernels[number]) : "")), $("shared").textContent].join(" ").trim();
}

function summary(answer, found, by) {
  const first = answer.proponents[0];
  return `${by ? `By the ${by}: ` : ""}${answer.proponents.length} proponents and ${answer.opponents.length} opponents in ${Math.round(1000 * found.timing.total)} milliseconds${first ? `, the first is sample ${first.id}, ${name(first, "label") ?? "without label"}` : ""}.`;
}

async function browse() {
  for (const id of ["query", "shared", "answers", "timing"]) $(id).hidden = true;
  $("browse").hidden = false;
  document.title = "gradindex";
  const list = $("browse").querySelector("ol");
  ghosts(list, 12);
  busy(true);
  const limit = Math.min(PAGE, info.max_queries);
  const one = state.classes.length === 1 ? `&label=${encodeURIComponent(state.classes[0])}` : "";
  const [found] = await askLatest(`/v1/items?offset=${state.offset}&limit=${limit}${one}`);
  cards(list, found.items, { empty: "There are no samples here." });
  $("place").textContent = found.total ? `${Math.min(state.offset + 1, found.total).toLocaleString("en")} to ${Math.min(state.offset + limit, found.total).toLocaleString("en")} of ${found.total.toLocaleString("en")}` : "";
  $("previous").disabled = state.offset === 0;
  $("next").disabled = state.offset + limit >= found.total;
  busy(false);
  $("status").textContent = `${found.items.length} samples to pick from.`;
}

// A file as the query: chosen, dropped or pasted.
async function take(files) {
  if (!info || $("own").hidden || !files.length) return;
  $("own-note").textContent = "";
  try {
    if (files.length > 1) throw new Error("Give one file at a time.");
    const query = await readFile(files[0], info.input, info.max_body);
    go({ id: null, input: encode(query), label: "" });
    $("own-note").textContent = query.note ?? "";
  } catch (error) {
    fail(error);
  }
}

function listen() {
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("row").value !== "") go({ id: Math.max(0, Math.trunc(Number($("row").value))), input: null, label: "" });
  });
  $("random").addEventListener("click", () => info && go({ id: Math.floor(Math.random() * info.samples), input: null, label: "" }));
  $("kernel").addEventListener("change", () => {
    const wanted = $("kernel").value;
    const swapped = wanted === beside() ? { beside: kernel() } : {};
    go({ kernel: wanted === info?.kernel ? null : wanted, ...swapped });
  });
  $("beside").addEventListener("change", () => go({ beside: $("beside").value || null }));
  $("k").addEventListener("change", () => {
    const wanted = Math.trunc(Number($("k").value)) || DEFAULTS.k;
    go({ k: Math.min(Math.max(1, wanted), info?.max_k ?? wanted) });
  });
  $("exact").addEventListener("change", () => go({ exact: $("exact").checked }));
  $("certify").addEventListener("change", () => go({ certify: $("certify").checked }));
  $("label").addEventListener("change", () => go({ label: $("label").value }));
  for (const radio of document.querySelectorAll("[name=side]")) radio.addEventListener("change", () => go({ side: radio.value }));
  $("classes").addEventListener("change", () => go({ classes: [...document.querySelectorAll("#classes :checked")].map((box) => box.value), offset: 0 }));
  $("all-classes").addEventListener("click", () => go({ classes: [], offset: 0 }));
  $("file").addEventListener("change", async () => {
    await take($("file").files);
    $("file").value = "";
  });
  const own = $("own");
  for (const kind of ["dragenter", "dragover"]) {
    own.addEventListener(kind, (event) => {
      event.preventDefault();
      own.classList.add("over");
    });
  }
  own.addEventListener("dragleave", (event) => own.contains(event.relatedTarget) || own.classList.remove("over"));
  own.addEventListener("drop", (event) => {
    event.preventDefault();
    own.classList.remove("over");
    take(event.dataTransfer.files);
  });
  for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());  // beside it a file would replace the page
  addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    take(event.clipboardData.files);
  });
  $("send-text").addEventListener("click", () => $("text").value.trim() && go({ id: null, input: encode({ text: $("text").value }), label: "" }));
  $("previous").addEventListener("click", () => go({ offset: Math.max(0, state.offset - PAGE) }));
  $("next").addEventListener("click", () => go({ offset: state.offset + PAGE }));
  $("retry").addEventListener("click", show);
  $("home").addEventListener("click", (event) => { event.preventDefault(); go({ ...DEFAULTS }); });
  $("link").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      $("link").textContent = "Copied";
    } catch {
      $("link").textContent = "Copy the address above";
    }
    setTimeout(() => { $("link").textContent = "Copy link"; }, 2000);
  });
  $("main").addEventListener("click", (event) => {
    const picked = event.target.closest("button[data-id]");
    if (!picked) return;
    go({ id: Number(picked.dataset.id), input: null, label: "" });
    $("main").focus();
    scrollTo({ top: 0 });
  });
  $("main").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !event.target.dataset?.id) return;
    const every = [...document.querySelectorAll("main button[data-id]")].filter((one) => one.offsetParent);
    every[every.indexOf(event.target) + step]?.focus();
    event.preventDefault();
  });
  addEventListener("popstate", () => { state = read(); show(); });
}

listen();
show();
