"""How fast this library is, against itself and against peers; measured, written as JSON, and shown in README.md."""
