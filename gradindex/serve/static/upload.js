// A query of one's own: read from a file, and short enough to stand in the address.

import { ask, Problem } from "./api.js";

const LONGEST = 60000;
// What is too long for an address, until the page is left.
const held = new Map();

const fromBase64 = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (one) => one.charCodeAt(0));

// {pixels: base64}, {text} or {json} as one string.
export function encode(query) {
  const text = query.pixels ? `p${query.pixels}` : query.text !== undefined ? `t${query.text}` : `j${JSON.stringify(query.json)}`;
  if (text.length <= LONGEST) return text;
  const key = `h${held.size + 1}`;
  held.set(key, text);
  return key;
}

// The raw input that the service takes.
export function decode(text, form) {
  if (text[0] === "h") {
    if (!held.has(text)) throw new Error("This query is too long for a link: give the file again.");
    return decode(held.get(text), form);
  }
  if (text[0] === "t") return text.slice(1);
  try {
    if (text[0] === "j") return JSON.parse(text.slice(1));
    if (text[0] !== "p") throw new Error();
    const values = Array.from(fromBase64(text.slice(1)), (byte) => form.low + (byte / 255) * (form.high - form.low));
    return shaped(values, form);
  } catch {
    throw new Error("The query in this link is damaged.");
  }
}

// Pixels come row by row, channels last; inputs may have channels first, or be flat.
function shaped(values, form) {
  const [height, width, channels = 1] = form.picture;
  if (values.length !== height * width * channels) throw new Error();
  if (form.shape.length === 3 && channels > 1 && form.shape[0] === channels) {
    const planes = Array.from({ length: channels }, (_, c) => values.filter((_, i) => i % channels === c));
    return nest(planes.flat(), form.shape);
  }
  return nest(values, form.shape);
}

function nest(values, shape) {
  if (shape.length <= 1) return values;
  const size = values.length / shape[0];
  return Array.from({ length: shape[0] }, (_, i) => nest(values.slice(i * size, (i + 1) * size), shape.slice(1)));
}

// Which files are taken, for the file button.
export function accepted(form) {
  if (form.kind === "text" || form.tokenizer) return ".txt,text/plain";
  return takesPictures(form) ? "image/png,image/jpeg,.npy,.json" : ".npy,.json";
}

export const takesPictures = (form) => form.prepares || Boolean(form.picture && !form.why_no_picture);

async function readText(file) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Problem(`${file.name} is no text in UTF-8.`);
  }
  if (!text.trim()) throw new Problem(`${file.name} holds no text.`);
  return text;
}

// A file as a query, and a note on what was done to it. Pictures and arrays are read by the service, which knows the job.
export async function readFile(file, form, limit) {
  if (file.size === 0) throw new Problem(`${file.name} is empty.`);
  if (file.size > limit) throw new Problem(`${file.name} has ${file.size.toLocaleString("en")} bytes; at most ${limit.toLocaleString("en")} are taken.`);
  if (form.kind === "text" || form.tokenizer) return { text: await readText(file) };
  if (file.type === "application/json" || file.name.endsWith(".json")) {
    try {
      return { json: JSON.parse(await file.text()) };
    } catch {
      throw new Problem(`${file.name} is not JSON.`);
    }
  }
  const { pixels, input, note } = await ask("/v1/inputs", new Blob([file]));
  return { ...(pixels ? { pixels } : { json: input }), note };
}
