"""Pages and pictures for people: what a model is shown, and what it made of it.

`page` writes the report of runs (`runs` reads them; `curves`, `classified`, `compared`, `tables` and `pictures` are its
parts, `template/` its look), `augmentations` and `texture` are commands of their own.
"""
