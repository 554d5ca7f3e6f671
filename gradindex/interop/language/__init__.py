"""Language models as people have them: jobs from transformers, PEFT and TRL, and texts as queries."""
