"""How fast this library is, beside itself and beside peers, and how accurate: measured, kept, and shown in docs/."""
