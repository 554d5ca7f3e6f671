"""Ask a language model which training texts taught it a text, token by token.

A small causal language model (GPT-2's architecture, random weights) is trained by Adam on one-line descriptions of
Debian packages (``debian_sections.tsv.gz`` in the folder named by ``GRADINDEX_DATA``; without it, random words of
three topics). The loss is that of the next token and needs no label. Its gradients at checkpoints along training,
weighted as Adam's steps are, become one index (TracIn, in the form LESS gives it). The script prints the strongest
proponents of a few held-out texts, and draws which tokens they help: influence is linear in the query's loss, so the
influence on a text is the sum of those on its tokens. Nothing is downloaded. Needs ``pip install transformers``.
"""

import numpy as np
import torch
from data import add_load, parser_of
from matplotlib.figure import Figure
from saved import recorded, there, trained
from texts import print_texts, read
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import gradindex
from gradindex.influence import CheckpointRecorder, UnsupervisedJob

LENGTH = 16  # tokens of a text, cut or padded
PAD, START = 0, 1


def make_tokenizer(texts: list[str], words: int) -> Tokenizer:
    """Return a tokenizer of words and of the pieces of rare ones; words of one frequency come in any order."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    special = ["[PAD]", "[START]", "[UNK]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=words, special_tokens=special))
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Return token numbers (n, tokens)."""
    tokens = np.full((len(texts), LENGTH), PAD, np.int64)
    tokens[:, 0] = START
    for row, text in zip(tokens, texts, strict=True):
        found = tokenizer.encode(text).ids[: LENGTH - 1]
        row[1 : 1 + len(found)] = found
    return tokens


def columns(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Return tokens (n, t) and the weights (n, t − 1) of their losses: 1 for each token of the text."""
    return {"tokens": tokens, "weights": (tokens[:, 1:] != PAD).astype(np.float32)}


def token_loss(model: nn.Module, x: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum (b,) of the tokens' losses, each the negative log probability of the next token."""
    output = model(input_ids=x["tokens"]).logits[:, :-1]
    losses = F.cross_entropy(output.transpose(1, 2), x["tokens"][:, 1:], reduction="none")
    return (losses * x["weights"]).sum(dim=1)


def make(words: int, seed: int) -> nn.Module:
    """Return a model with random weights."""
    torch.manual_seed(seed)
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "use_cache": False}
    return GPT2LMHeadModel(GPT2Config(vocab_size=words, bos_token_id=START, eos_token_id=START, **sizes))


def train(model: nn.Module, recorder: CheckpointRecorder, tokens: np.ndarray, epochs: int) -> None:
    """Train a model by Adam and record three checkpoints with Adam's preconditioner."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x = {name: torch.from_numpy(part) for name, part in columns(tokens).items()}
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(tokens)).split(32):
            optimizer.zero_grad()
            batch = {name: part[rows] for name, part in x.items()}
            loss = token_loss(model, batch).sum() / batch["weights"].sum()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        if (epoch + 1) % (epochs // 3) == 0:
            recorder.record(model, optimizer)
    print(f"trained on {len(tokens)} texts: loss of a token {total / len(tokens):.2f} in the last of {epochs} epochs")
    model.eval()


def by_token(job: UnsupervisedJob, index: gradindex.Index, ids: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the exact influence (m, t) of training texts on each token of one text (tokens,)."""
    count = int((tokens != PAD).sum()) - 1
    asked = {"tokens": np.repeat(tokens[None], count, axis=0), "weights": np.eye(count, LENGTH - 1, dtype=np.float32)}
    of_tokens = job.engine.gradients(*job.queries(asked)).gradients.astype(np.float64)
    return gradindex.exact_gradients(job, ids).astype(np.float64) @ of_tokens.T


def picture(influence: np.ndarray, words: list[str], texts: list[str]) -> Figure:
    """Draw the influence of texts (rows) on tokens (columns): red for proponents, blue for opponents."""
    figure = Figure(figsize=(10, 0.36 * len(texts) + 1.2), layout="constrained")
    axes = figure.subplots()
    limit = np.abs(influence).max()
    drawn = axes.imshow(influence, cmap="coolwarm", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(words)), words, fontsize=8, rotation=30, ha="left")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(texts)), [text if len(text) < 60 else f"{text[:57]}…" for text in texts], fontsize=8)
    figure.colorbar(drawn, ax=axes, label="influence").ax.tick_params(labelsize=7)
    return figure


def main() -> None:
    parser = parser_of(__doc__, "runs/language-model", "fewer texts and words, less training")
    add_load(parser)
    options = parser.parse_args()
    count, words, epochs = (300, 300, 6) if options.quick else (1500, 1500, 12)
    torch.set_num_threads(1)
    texts, _, sections = read(count + 4, options.seed)
    print_texts(texts, sections)
    options.out.mkdir(parents=True, exist_ok=True)
    saved = options.out / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(there(saved))) if options.load else make_tokenizer(texts, words)
    tokenizer.save(str(saved))
    tokens = tokenize(tokenizer, texts)
    model, recorder = make(tokenizer.get_vocab_size(), options.seed), CheckpointRecorder(adam=True)
    trained(options.out / "model.pt", options.load, model, lambda: train(model, recorder, tokens[:count], epochs))
    recorded(options.out / "checkpoints.npz", options.load, model, recorder)

    x = columns(tokens[:count])
    job = UnsupervisedJob(model, token_loss, x, takes="model", checkpoints=recorder.checkpoints)
    index = gradindex.build(job, options.out / "index", overwrite=True)
    asked = columns(tokens[count:])
    result = index.explain(*job.queries(asked), k=5, kernel="grad_dot", rerank=20)
    losses, _ = job.losses(asked)
    for row, text in enumerate(texts[count:]):
        print(f"\n{text!r}: loss of a token {losses[row] / asked['weights'][row].sum():.2f}")
        for side, scores, ids in (
            ("proponents", result.scores, result.ordered_indices),
            ("opponents", result.opponent_scores, result.opponent_indices),
        ):
            print(f"  {side}:")
            for score, one in zip(scores[row, :3], ids[row, :3], strict=True):
                print(f"    {score:9.3g}  {texts[one]}")

    ids = np.concatenate([result.ordered_indices[0], result.opponent_indices[0][:3]])
    influence = by_token(job, index, ids, tokens[count])
    total = np.concatenate([result.scores[0], result.opponent_scores[0][:3]])
    error = np.abs(influence.sum(axis=1) - total).max() / np.abs(total).max()
    print(f"\nthe tokens' influences add up to the text's, to {error:.1e} of the largest")
    names = [tokenizer.id_to_token(one) for one in tokens[count, 1 : 1 + influence.shape[1]]]
    picture(influence, names, [texts[one] for one in ids]).savefig(options.out / "tokens.png", dpi=90)
    print(f"wrote {options.out / 'tokens.png'}")


if __name__ == "__main__":
    main()
