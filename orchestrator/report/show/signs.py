"""Signs of tables and sentences, and the plain one that stands for each where it cannot be written.

One character for one: what is laid out in columns stays in them.
"""

from __future__ import annotations

PLAIN = {
    **dict(
        zip(
            "·→…–×±µ▲▼✓✗━╌░▒°↳≥≤\N{NO-BREAK SPACE}",
            "|>~-x+u^v+x=-.: >>< ",
            strict=True,
        )
    ),
    **dict.fromkeys("─╴╶═—", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯╞╡╪┏┓┗┛┡┩╇", "+"),
    **dict.fromkeys("●•▪", "*"),
    **dict.fromkeys("█▓▇▆▅", "#"),
    **dict.fromkeys("▄▃▂▁", "."),
    **dict.fromkeys("\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}", " "),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    "▶": ">",
    "◀": "<",
    "μ": "u",
    "∝": "~",
    "Δ": "d",
}
