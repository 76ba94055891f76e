"""`triggers`: the attacks as a list and as a picture."""

from experiments import console
from experiments.__main__ import COMMANDS


def test_attacks_are_listed(capsys):
    from abd_jax.attacks.attack import ATTACKS

    assert console.run(COMMANDS, ["triggers"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ATTACKS)


def test_triggers_are_drawn(tmp_path, capsys):
    from PIL import Image

    from abd_jax.attacks.page import GAP

    argv = ["triggers", "digits", "--triggers", "blend", "badnet_sq", "--out", str(tmp_path / "page")]
    assert console.run(COMMANDS, argv) == 0
    with Image.open(tmp_path / "page" / "triggers.png") as picture:
        two = picture.size
    assert console.run(COMMANDS, [*argv[:3], "blend", *argv[5:]]) == 0
    with Image.open(tmp_path / "page" / "triggers.png") as picture:
        assert picture.size[0] == two[0] and two[1] - picture.size[1] == 64 + GAP  # 16 pixels, four times as large
