"""A page to play with a model: what it draws from, level by level and token by token.

`explorer` draws, `requests` reads what a browser asks for, `answers` writes what it shows,
`server` and `export` put both behind a page, with a server and without.
"""
