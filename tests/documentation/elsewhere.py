ELSEWHERE = {"docs/tutorial.md": {"make env": "", 'export PATH="$PWD/.venv/bin:$PATH"': ""}}
