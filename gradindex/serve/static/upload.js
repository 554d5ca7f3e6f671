// A query of one's own: read from a file, and short enough to stand in the address.

const LONGEST = 60000;

const toBase64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const fromBase64 = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (one) => one.charCodeAt(0));

// {pixels: bytes}, {text} or {json} as one string.
export function encode(query) {
  const text = query.pixels ? `p${toBase64(query.pixels)}` : query.text !== undefined ? `t${query.text}` : `j${JSON.stringify(query.json)}`;
  if (text.length > LONGEST) throw new Error("This is too large for a link; send it to /v1/explain instead.");
  return text;
}

// The raw input that the service takes.
export function decode(text, form) {
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

export async function readFile(file, form) {
  if (form.kind === "text") return { text: await file.text() };
  if (file.type === "application/json" || file.name.endsWith(".json")) {
    try {
      return { json: JSON.parse(await file.text()) };
    } catch {
      throw new Error(`${file.name} is not JSON.`);
    }
  }
  if (!form.picture) throw new Error("Give a .json file with a list of numbers.");
  const [height, width, channels = 1] = form.picture;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is not a picture that this browser can read.`);
  }
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = [];
  for (let i = 0; i < data.length; i += 4) {
    const [red, green, blue] = data.slice(i, i + 3);
    if (channels === 3) pixels.push(red, green, blue);
    else pixels.push(Math.round(0.299 * red + 0.587 * green + 0.114 * blue));
  }
  return { pixels };
}
