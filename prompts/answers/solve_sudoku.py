"""Tests of a Sudoku solver: the givens stay, every row, column and box holds 1 to 9."""

BOARDS = (
    "..2.5.3.. .6....... 8.34...5. ..9...... ..51...7. 6....9..2 .94..6... 2....7..9 .8..3....",
    "3.72...9. .....6... .1..9.7.. ..6.....9 ....83... 74.5..6.. ..3..7.1. .2..5.46. .........",
)

for text in BOARDS:
    given = [list(row) for row in text.split()]
    board = [list(row) for row in given]
    assert solve_sudoku(board) is None, "it must solve in place and return nothing"
    for r in range(9):
        for c in range(9):
            assert given[r][c] in (".", board[r][c]), "a given digit was changed"
    rows = [set(row) for row in board]
    columns = [{board[r][c] for r in range(9)} for c in range(9)]
    boxes = [
        {board[3 * (b // 3) + i][3 * (b % 3) + j] for i in range(3) for j in range(3)}
        for b in range(9)
    ]
    assert all(group == set("123456789") for group in rows + columns + boxes), "not solved"
