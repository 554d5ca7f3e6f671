// What the pages of the review and of the map have in common.

import { ask } from "./api.js";
import { TEXT, say, translate } from "./strings.js";

export const $ = (id) => document.getElementById(id);
const WATCHED = 700; // milliseconds between two questions how far it is

export function announce(text) {
  $("status").textContent = text;
}

export function fail(error) {
  $("error").hidden = false;
  $("error-text").textContent = error.message;
  $("main").setAttribute("aria-busy", "false");
}

export function hash() {
  return new URLSearchParams(location.hash.slice(1));
}

export function begin(title, show) {
  translate();
  document.title = TEXT[title];
  $("link").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      $("link").textContent = TEXT.copied;
    } catch {
      $("link").textContent = TEXT.copyAbove;
    }
    setTimeout(() => { $("link").textContent = TEXT.copyLink; }, 2000);
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("retry").addEventListener("click", () => { $("error").hidden = true; show(); });
}

// Show how far something is until it is ready, and have it made at a click; `path` says both.
export async function ready(path, hint) {
  let status = await ask(path);
  while (status.making.state !== "ready") {
    const { state, stage, step, steps, seconds, detail } = status.making;
    $("making").hidden = false;
    $("make").hidden = $("making-hint").hidden = state === "running";
    $("making-hint").textContent = hint(status);
    $("progress").hidden = state !== "running";
    $("progress").max = Math.max(steps, 1);
    if (steps > 1) $("progress").value = step;
    else $("progress").removeAttribute("value");
    const said = { stage: TEXT.stages[stage] ?? stage, step: step + 1, steps, seconds: Math.round(seconds) };
    $("making-text").textContent = state === "running" ? say(steps > 1 ? "making" : "makingOne", said)
      : state === "failed" ? say("makingFailed", { why: detail }) : "";
    $("main").setAttribute("aria-busy", String(state === "running"));
    if (state === "running") {
      await new Promise((resolve) => setTimeout(resolve, WATCHED));
      status = await ask(path);
    } else {
      await new Promise((resolve) => $("make").addEventListener("click", resolve, { once: true }));
      status = await ask(path, {});
    }
  }
  $("making").hidden = true;
  return status;
}
