"""From a question to an answer: candidates, exact checks, proofs; and audits of all of them."""
