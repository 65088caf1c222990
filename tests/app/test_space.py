import re
from pathlib import Path

from lightning_fair.app import session

SPACE = Path(__file__).parents[2] / "examples" / "fair_batch_space"


def test_space_has_its_files():
    assert {path.name for path in SPACE.iterdir() if path.is_file()} == {"README.md", "app.py", "requirements.txt"}
    text = (SPACE / "README.md").read_text()
    fields = dict(re.findall(r"^(\w+): (.+)$", text.split("---")[1], re.MULTILINE))
    assert fields["sdk"] == "gradio"
    assert fields["app_file"] == "app.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["sdk_version"])
    assert 'echo "lightning-fair[app] @ git+https://' in text  # until there is a release
    assert "lightning-fair[app]" in (SPACE / "requirements.txt").read_text().split("\n")


def test_space_states_the_limits():
    text = (SPACE / "README.md").read_text()
    limits = (session.LARGEST_N, session.LARGEST_K, session.MAX_COUNTS)
    assert all(f"{limit:,}" in text for limit in limits)
    assert f"{session.LARGEST_FILE // 2**20} MB" in text
