// Every text of the pages of the review and of the map, ready for translation. {names} are filled in.

export const TEXT = {
  skip: "Skip to the list",
  skipMap: "Skip to the map",
  explore: "Explore", review: "Review", map: "Map", pages: "Pages",
  copyLink: "Copy link", copied: "Copied", copyAbove: "Copy the address above",
  noScript: "This page needs JavaScript.",
  failed: "That did not work", again: "Try again",
  tokenTitle: "This service needs a token", token: "Token", tokenKept: "It is kept until this tab is closed.", goOn: "Continue",

  reviewTitle: "Samples to look at · gradindex",
  reviewAbout: "Which samples are to be looked at before a model is trained again?",
  lists: "Lists", listOptions: "Lists, reviewer and export",
  list: "{decided} of {total} decided",
  reviewer: "Reviewer", yourName: "Your name", nameHint: "It stands beside each of your decisions.",
  decidedInAll: "{count} samples are decided, by all reviewers.",
  oneDecidedInAll: "1 sample is decided.",
  damaged: "{count} lines of the file of decisions cannot be read.",
  firstOpen: "Go to the first that is open",
  export: "Export", exportCsv: "CSV", exportJsonl: "JSON lines",
  exportHint: "For gradindex remove OUT --decisions FILE.",
  keys: "Keys", keysOn: "Single keys decide",
  keyList: {
    K: "keep", R: "relabel", X: "remove", L: "later", U: "undo", "N →": "next", "P ←": "previous", S: "the other of a pair",
  },
  readOnly: "No decisions are taken here: {why}",
  notMade: "There is no review of this index yet.",
  notMadeHint: "It reads all samples once and trains small classifiers: seconds for thousands of samples, minutes for a million. Lookups are answered meanwhile.",
  make: "Look for samples",
  stages: {
    samples: "Reading the samples", neighbours: "Comparing them with each other", classifiers: "Training classifiers",
    ranking: "Ranking", projection: "Laying out the samples",
  },
  making: "{stage}, step {step} of {steps}, {seconds} s",
  makingOne: "{stage}, {seconds} s",
  makingFailed: "It failed: {why}",
  leftOut: "Left out",
  previousPage: "Previous page", nextPage: "Next page",
  place: "{first} to {last} of {total}",
  empty: "There are none.",
  sample: "Sample {id}",
  pair: "{one} and {other}",
  label: "Label", prediction: "Prediction", proposed: "Proposed", score: "Score", evidence: "Evidence",
  precision: "Expected precision to here", estimate: "{share} (estimate)", lessThanOne: "less than 1 %", share: "{percent} %",
  lookAt: "Neighbours of this sample",
  neighbours: "Evidence", neighbour: "Sample {id}, {label}: explore", neighbourPlain: "Sample {id}: explore",
  decision: "Decision on sample {id}",
  keep: "Keep", relabel: "Relabel as", relabelled: "Relabel", remove: "Remove", later: "Later", undo: "Undo my last",
  other: "Decide on sample {id} instead",
  newLabel: "New label of sample {id}", choose: "choose a class",
  stands: "{reviewer}: {decision}", standsMine: "You: {decision}",
  words: { keep: "keep", relabel: "relabel as {label}", remove: "remove", later: "later" },
  differs: "{reviewer} decided otherwise: {decision}",
  saving: "Saving …",
  notSaved: "Not saved: {why}",
  removed: "Already removed from the index",
  said: "Sample {id}: {decision}.",
  saidUndone: "Undone: sample {id} is {decision} again.", saidUndoneOpen: "Undone: sample {id} is open again.",
  saidNext: "Next: {what}.",
  saidRow: "sample {id}, label {label}, proposed {proposed}", saidRowPlain: "sample {id}, label {label}", saidBare: "sample {id}",
  saidEnd: "That was the last one of this list.",
  saidList: "{title}: {total} to look at, {decided} decided.",
  saidOther: "{reviewer} decided on sample {id}: {decision}.",
  chooseFirst: "Choose a class for sample {id} first.",
  nameFirst: "Say your name first.",

  mapTitle: "Map of the samples · gradindex",
  mapAbout: "Samples whose gradients are alike lie near each other.",
  mapMissing: "There is no map of this index yet.",
  mapMissingHint: "{points} samples are drawn and laid out in two dimensions; it takes a while.",
  drawMap: "Draw the map",
  colours: "Colours", mapOptions: "Colours and how to choose",
  byClass: "Class", byNorm: "Self-influence", byState: "Decision",
  open: "open", noLabel: "no label", otherClasses: "classes {first} and on",
  normFrom: "{low}", normTo: "{high}",
  drawnFrom: "{points} of {of} samples, {way}. The principal components have {share} of the variance.",
  ways: { tsne: "t-SNE of 50 principal components", pca: "the first two principal components" },
  choosing: "Choosing samples",
  choosingHint: "Drag a box over points, or click on one. By keyboard: arrows move the frame, + and − change its size, Enter chooses what is in it, Escape chooses none.",
  canvas: "Map of {points} samples. Arrows move the frame, plus and minus change its size, Enter chooses the samples in it.",
  frame: "{count} samples in the frame.", frameNear: "{count} samples in the frame, nearest {what}.",
  chosen: "Chosen samples", chosenNone: "None are chosen.", chosenSome: "{count} chosen.",
  none: "Choose none",
};

export function fill(text, values = {}) {
  return text.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? values[name].toLocaleString("en") : values[name] ?? ""));
}

export const say = (key, values) => fill(TEXT[key], values);

// Texts of the markup: data-text names that of an element, data-label its accessible name.
export function translate() {
  for (const one of document.querySelectorAll("[data-text]")) one.textContent = TEXT[one.dataset.text];
  for (const one of document.querySelectorAll("[data-label]")) one.setAttribute("aria-label", TEXT[one.dataset.label]);
}
