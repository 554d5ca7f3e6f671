// Asking the service, with the token if it wants one; an answer that comes too late is thrown away.

let controller = null;

export class Problem extends Error {}

function headers(body) {
  const token = sessionStorage.getItem("gradindex-token");
  return {
    ...(body === undefined ? {} : { "content-type": body instanceof Blob ? "application/octet-stream" : "application/json" }),
    ...(token ? { authorization: `Bearer ${token}` } : {}),
  };
}

function askForToken() {
  const dialog = document.getElementById("ask");
  const field = document.getElementById("token");
  field.value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("gradindex-token", field.value);
      resolve();
    }, { once: true });
  });
}

export async function ask(path, body, signal) {
  for (;;) {
    let answer;
    try {
      answer = await fetch(path, {
        method: body === undefined ? "GET" : "POST",
        headers: headers(body),
        body: body === undefined || body instanceof Blob ? body : JSON.stringify(body),
        signal,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The service does not answer. Is it still running?");
    }
    if (answer.status === 401) {
      await askForToken();
      continue;
    }
    const found = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Problem(found.detail || `The service answered ${answer.status}.`);
    return found;
  }
}

// A file of the service, saved by the browser under a name.
export async function save(path, name) {
  for (;;) {
    const answer = await fetch(path, { headers: headers() }).catch(() => { throw new Problem("The service does not answer. Is it still running?"); });
    if (answer.status === 401) {
      await askForToken();
      continue;
    }
    if (!answer.ok) throw new Problem(`The service answered ${answer.status}.`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    return;
  }
}

// Only the last of these counts; its questions are asked at once, and answered together.
export function askLatest(path, ...bodies) {
  controller?.abort();
  controller = new AbortController();
  const { signal } = controller;
  return Promise.all((bodies.length ? bodies : [undefined]).map((body) => ask(path, body, signal)));
}
