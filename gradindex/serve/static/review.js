// The review: lists of samples, one of them current, decided on by keys or buttons. The address holds list and place.

import { ask, save } from "./api.js";
import { $, announce, begin, fail, hash, ready } from "./common.js";
import { TEXT, fill, say } from "./strings.js";
import { element, name, number, seen } from "./view.js";

const PAGE = 20;
const POLLED = 4000; // milliseconds between two looks at what others decided
const DECISIONS = ["keep", "relabel", "remove", "later"];
const KEYS = { k: "keep", r: "relabel", x: "remove", delete: "remove", l: "later" };
let info = null, status = null, rows = [], state = read(), since = 0, writing = Promise.resolve();

function read() {
  const found = hash();
  const at = found.get("at");
  return { kind: found.get("kind"), at: /^\d{1,15}$/.test(at ?? "") ? Number(at) : 0 };
}

function address(push) {
  const text = `#kind=${state.kind}&at=${state.at}`;
  if (location.hash !== text) history[push ? "pushState" : "replaceState"](null, "", text);
}

const list = () => status.kinds.find((one) => one.kind === state.kind);
const current = () => rows[state.at - (rows[0]?.place ?? 0)];
const reviewer = () => $("reviewer").value.trim();
const className = (value) => info.class_names?.[value] ?? String(value);
const words = (entry) => fill(TEXT.words[entry.decision], { label: entry.label_name ?? entry.label });

async function show() {
  try {
    info ??= await ask("/v1/index");
    status = await ready("/v1/review", () => TEXT.notMadeHint);
    since = status.next;
    if (!list()) state.kind = (status.kinds.find((one) => one.total) ?? status.kinds[0]).kind;
    fillControls();
    await load(true);
  } catch (error) {
    fail(error);
  }
}

function fillControls() {
  const { read_only, why_read_only, kinds, decided, damaged, left_out } = status;
  $("kinds").replaceChildren(...kinds.map((one) => element("label", {},
    element("input", { type: "radio", name: "kind", value: one.kind, checked: one.kind === state.kind, disabled: !one.total }),
    element("span", {}, one.title), element("small", {}, say("list", one)))));
  $("name-part").hidden = $("undo").hidden = $("keys").hidden = read_only;
  $("read-only").hidden = !read_only;
  $("read-only").textContent = say("readOnly", { why: why_read_only });
  $("in-all").textContent = decided === 1 ? TEXT.oneDecidedInAll : say("decidedInAll", { count: decided });
  $("damaged").hidden = !damaged;
  $("damaged").textContent = say("damaged", { count: damaged });
  $("first-open").disabled = list().first_open === null;
  $("left-out").hidden = !left_out.length;
  $("left-out").querySelector("ul").replaceChildren(...left_out.map((one) => element("li", {}, one)));
}

// Load the page of lines that holds the current one.
async function load(focus) {
  const { kind } = state, { title, total, meaning, decided } = list();
  state.at = Math.max(0, Math.min(state.at, total - 1));
  const offset = Math.floor(state.at / PAGE) * PAGE;
  $("main").setAttribute("aria-busy", "true");
  const limit = Math.min(PAGE, info.max_queries);
  const found = (await ask(`/v1/review/rows?kind=${kind}&offset=${offset}&limit=${limit}`)).rows;
  while (found.length && found.length < Math.min(PAGE, total - offset)) {
    found.push(...(await ask(`/v1/review/rows?kind=${kind}&offset=${offset + found.length}&limit=${limit}`)).rows);
  }
  if (kind !== state.kind) return;
  rows = found.map((row) => ({ ...row, subject: row.id, label: row.proposed, saving: "" }));
  $("list").hidden = false;
  $("list-title").textContent = title;
  $("meaning").textContent = meaning;
  $("precision-from").hidden = kind !== "label" || !status.precision_from;
  $("precision-from").textContent = status.precision_from;
  $("rows").replaceChildren(...rows.map(make), ...(rows.length ? [] : [element("li", { class: "none" }, TEXT.empty)]));
  $("place").textContent = total ? say("place", { first: offset + 1, last: offset + rows.length, total }) : "";
  $("previous").disabled = !offset;
  $("next").disabled = offset + PAGE >= total;
  $("main").setAttribute("aria-busy", "false");
  announce(say("saidList", { title, total, decided }));
  mark(focus);
}

function mark(focus) {
  for (const row of rows) {
    if (row.place === state.at) row.made.setAttribute("aria-current", "true");
    else row.made.removeAttribute("aria-current");
  }
  address(false);
  if (focus) current()?.made.focus();
}

function evidence(row, one) {
  const label = name(one, "label");
  const same = row.sample === null || label === null ? "" : one.label === row.sample.label ? " same" : " other";
  const said = label === null ? say("neighbourPlain", { id: one.id }) : say("neighbour", { id: one.id, label });
  return element("li", {}, element("a", { href: `/#id=${one.id}`, class: same.trim(), "aria-label": said },
    seen(one, ""), element("span", {}, label === null ? `#${one.id}` : `#${one.id} ${label}`)));
}

function facts(row) {
  const lines = [];
  const add = (key, value) => value !== null && value !== undefined && lines.push(element("dt", {}, TEXT[key]), element("dd", {}, value));
  if (row.sample) {
    add("label", name(row.sample, "label"));
    add("prediction", name(row.sample, "prediction"));
  }
  add("proposed", row.proposed_name);
  if (row.precision !== null) {
    const percent = Math.round(100 * row.precision);
    add("precision", say("estimate", { share: row.precision < .01 ? TEXT.lessThanOne : say("share", { percent }) }));
  }
  add("score", number(row.score));
  add("evidence", row.note);
  return element("dl", {}, ...lines);
}

function make(row) {
  const title = row.id === null ? say("pair", { one: row.classes[0], other: row.classes[1] }) : say("sample", { id: row.id });
  const heading = element("h3", { id: `row-${row.place}` }, title);
  if (row.id !== null) heading.append(element("a", { href: `/#id=${row.id}` }, TEXT.lookAt));
  const wide = row.neighbours.some((one) => one.rendered && one.rendered.kind !== "image");
  row.made = element("li", { class: row.id === null ? "row pair" : "row", tabIndex: -1, "aria-labelledby": heading.id }, heading,
    row.sample && seen(row.sample, title), facts(row),
    element("ul", { class: wide ? "evidence wide" : "evidence", "aria-label": TEXT.neighbours }, ...row.neighbours.map((one) => evidence(row, one))));
  row.decide = element("div", { class: "decide", role: "group" });
  row.stands = element("p", { class: "stands" });
  if (row.id !== null) row.made.append(row.decide, row.stands);
  const come = () => { if (state.at !== row.place) { state.at = row.place; mark(false); } };
  row.made.addEventListener("focusin", come);
  row.made.addEventListener("pointerdown", come);
  buttons(row);
  refresh(row);
  return row.made;
}

// What is decided on; of a pair either sample.
function buttons(row) {
  if (row.id === null || status.read_only || row.sample.removed) return;
  row.decide.setAttribute("aria-label", say("decision", { id: row.subject }));
  const press = (decision) => element("button", { type: "button", onclick: () => decide(row, decision), "data-decision": decision }, TEXT[decision]);
  const [keep, relabel, remove, later] = DECISIONS.map(press);
  const parts = [keep, remove, later];
  if (info.task === "classification" && info.classes.length) {
    row.select = element("select", { "aria-label": say("newLabel", { id: row.subject }), onchange: () => { row.label = row.select.value === "" ? null : Number(row.select.value); } },
      element("option", { value: "" }, TEXT.choose), ...info.classes.map((one) => element("option", { value: String(one) }, className(one))));
    row.select.value = String(row.label ?? "");
    parts.splice(1, 0, element("span", { class: "as" }, relabel, row.select));
  }
  if (state.kind === "duplicate") {
    const other = row.subject === row.id ? row.neighbours[0].id : row.id;
    parts.push(element("button", { type: "button", class: "quiet", onclick: () => swap(row) }, say("other", { id: other })));
  }
  row.decide.replaceChildren(...parts);
}

function refresh(row) {
  const standing = row.decided?.standing;
  for (const one of row.decide.querySelectorAll("[data-decision]")) {
    one.setAttribute("aria-pressed", String(standing?.decision === one.dataset.decision));
  }
  if (row.select && standing?.decision === "relabel") row.select.value = String(row.label = standing.label);
  const parts = [];
  if (row.sample?.removed) parts.push(element("span", {}, TEXT.removed));
  if (row.id !== null && row.subject !== row.id) parts.push(element("span", {}, say("sample", { id: row.subject })));
  if (standing) {
    parts.push(element("span", {}, element("b", {}, say(standing.reviewer === reviewer() ? "standsMine" : "stands", { reviewer: standing.reviewer, decision: words(standing) }))));
  }
  for (const one of row.decided?.differing ?? []) {
    parts.push(element("span", { class: "differs" }, say("differs", { reviewer: one.reviewer, decision: words(one) })));
  }
  if (row.saving) parts.push(element("span", { class: row.saving === TEXT.saving ? "" : "failed" }, row.saving));
  row.stands.replaceChildren(...parts);
}

async function swap(row) {
  row.subject = row.subject === row.id ? row.neighbours[0].id : row.id;
  row.label = null;
  try {
    row.decided = await ask(`/v1/review/decisions/${row.subject}`);
  } catch (error) {
    fail(error);
  }
  buttons(row);
  refresh(row);
  row.made.focus();
}

// Requests go one after the other, so that the last key pressed is the decision that stands.
function decide(row, decision) {
  if (!row || row.id === null || status.read_only || row.sample.removed) return;
  if (decision === "relabel" && !row.select) return;
  if (!reviewer()) {
    announce(TEXT.nameFirst);
    $("reviewer").focus();
    return;
  }
  if (decision === "relabel" && row.label === null) {
    announce(say("chooseFirst", { id: row.subject }));
    row.select.focus();
    return;
  }
  const id = row.subject;
  const body = { reviewer: reviewer(), id, decision, label: decision === "relabel" ? row.label : null };
  row.saving = TEXT.saving;
  refresh(row);
  writing = writing.then(async () => {
    try {
      const found = await ask("/v1/review/decisions", body);
      row.saving = "";
      take(id, found);
      await count();
      announce(`${say("said", { id, decision: words(found.entry) })} ${$("status").dataset.next ?? ""}`.trim());
    } catch (error) {
      row.saving = say("notSaved", { why: error.message });
      refresh(row);
      announce(`${say("sample", { id })}: ${row.saving}`);
    }
  });
  step(1, true);
}

// The decision on a sample stands in each line that has it.
function take(id, decided) {
  for (const row of rows) {
    if (row.subject !== id) continue;
    row.decided = decided;
    refresh(row);
  }
}

function undo() {
  if (status.read_only || !reviewer()) return;
  writing = writing.then(async () => {
    try {
      const found = await ask("/v1/review/undo", { reviewer: reviewer() });
      const { id } = found.entry;
      take(id, found);
      await count();
      const there = rows.find((row) => row.subject === id);
      if (there) {
        state.at = there.place;
        mark(true);
      }
      announce(found.standing ? say("saidUndone", { id, decision: words(found.standing) }) : say("saidUndoneOpen", { id }));
    } catch (error) {
      announce(error.message);
    }
  });
}

async function count() {
  status = await ask("/v1/review");
  if (status.making.state === "ready") fillControls();
}

function about(row) {
  if (row.id === null) return say("pair", { one: row.classes[0], other: row.classes[1] });
  const label = name(row.sample, "label");
  if (label === null) return say("saidBare", { id: row.id });
  return row.proposed_name ? say("saidRow", { id: row.id, label, proposed: row.proposed_name }) : say("saidRowPlain", { id: row.id, label });
}

async function step(by, quiet) {
  const at = state.at + by;
  if (at < 0 || at >= list().total) {
    $("status").dataset.next = by > 0 ? TEXT.saidEnd : "";
    if (by > 0 && !quiet) announce(TEXT.saidEnd);
    return;
  }
  state.at = at;
  if (current()) mark(true);
  else {
    try {
      await load(true);
    } catch (error) {
      fail(error);
    }
  }
  $("status").dataset.next = current() ? say("saidNext", { what: about(current()) }) : "";
  if (!quiet && current()) announce(about(current()));
}

function go(changes) {
  state = { ...state, ...changes };
  address(true);
  load(true).catch(fail);
}

// What others decided meanwhile.
async function poll() {
  if (document.visibilityState === "visible" && status?.making.state === "ready") {
    try {
      const found = await ask(`/v1/review/decisions?since=${since}`);
      since = found.next;
      const others = found.entries.filter((one) => one.reviewer !== reviewer());
      const here = new Set(rows.map((row) => row.subject));
      for (const id of new Set(others.map((one) => one.id))) {
        if (here.has(id)) take(id, await ask(`/v1/review/decisions/${id}`));
      }
      const last = others.filter((one) => here.has(one.id) && one.undoes === null).at(-1);
      if (last) announce(say("saidOther", { ...last, decision: words(last) }));
      if (others.length) await count();
    } catch { /* the next look may succeed; decisions say themselves when they are not saved */ }
  }
  setTimeout(poll, POLLED);
}

function listen() {
  $("kinds").addEventListener("change", (event) => go({ kind: event.target.value, at: 0 }));
  $("first-open").addEventListener("click", () => go({ at: list().first_open ?? 0 }));
  $("undo").addEventListener("click", undo);
  $("previous").addEventListener("click", () => go({ at: Math.max(0, (Math.floor(state.at / PAGE) - 1) * PAGE) }));
  $("next").addEventListener("click", () => go({ at: (Math.floor(state.at / PAGE) + 1) * PAGE }));
  for (const form of ["csv", "jsonl"]) {
    $(`export-${form}`).addEventListener("click", () => save(`/v1/review/export?form=${form}`, `decisions.${form}`).catch(fail));
  }
  let own = localStorage.getItem("gradindex-reviewer");
  if (!own) localStorage.setItem("gradindex-reviewer", own = `reviewer-${Math.random().toString(36).slice(2, 6)}`);
  $("reviewer").value = own;
  $("reviewer").addEventListener("change", () => {
    localStorage.setItem("gradindex-reviewer", reviewer());
    rows.forEach(refresh);
  });
  $("key-list").replaceChildren(...Object.entries(TEXT.keyList).flatMap(([key, what]) =>
    [element("dt", {}, ...key.split(" ").map((one) => element("kbd", {}, one))), element("dd", {}, what)]));
  addEventListener("popstate", () => {
    state = { ...state, ...read() };
    show();
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !$("keys-on").checked || !rows.length) return;
    if (event.target.closest("input, select, textarea, dialog")) return;
    const key = event.key.toLowerCase();
    if (KEYS[key]) decide(current(), KEYS[key]);
    else if (key === "u") undo();
    else if (key === "n" || key === "arrowright") step(1);
    else if (key === "p" || key === "arrowleft") step(-1);
    else if (key === "s" && state.kind === "duplicate" && current()) swap(current());
    else return;
    event.preventDefault();
  });
}

begin("reviewTitle", show);
listen();
show().then(() => setTimeout(poll, POLLED));
