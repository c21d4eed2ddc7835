"""Pictures for people: what a model is shown, and what it made of it."""
