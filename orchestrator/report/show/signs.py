"""Signs of tables and sentences, and the plain one that stands for each where it cannot be written.

One character for one, as what is laid out in columns stays in them; but for ``+-``, which takes a
space between columns as well.
"""

from __future__ import annotations

PLAIN = {
    **dict(
        zip(
            "·→…–×µ▲▼✓✗━╌░▒°↳≥≤\N{NO-BREAK SPACE}",
            "|>~-xu^v+x=-.: >>< ",
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
    "±": "+-",
    "▶": ">",
    "◀": "<",
    "μ": "u",
    "∝": "~",
    "Δ": "d",
}
