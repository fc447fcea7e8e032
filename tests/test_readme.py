"""What the README shows is run."""

import re
from pathlib import Path

import pytest
from django.test import RequestFactory

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_guarded_view_pays_and_is_refused(workspace):
    block = re.search(r"<!-- a test runs this block -->\n```python\n(.*?)```", README, re.DOTALL).group(1)
    called = []
    world = {"call_your_model": lambda topic: called.append(topic) or {"text": f"on {topic}", "cost": 12_345}}
    exec(block, world)
    request = RequestFactory().get("/haiku/?topic=rain", headers={"authorization": f"Bearer {workspace.key()}"})
    request.tenant, request.asker = workspace.tenant, None
    with workspace.scope():
        assert world["haiku"](request).content == b'{"haiku": "on rain"}'
        assert workspace.ledger()["spent"] == 12_345
        workspace.leave(49_999)
        from billing.errors import BudgetDenied

        with pytest.raises(BudgetDenied):
            world["haiku"](request)
    assert called == ["rain"]
    assert len(block.strip().splitlines()) <= 14


def test_its_variables_are_those_of_the_example():
    table = README[README.index("## Variables") :]
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", table))
    example = (ROOT / ".env.example").read_text().split("# Only for docker-compose.yml")[0]
    explained = {line.partition("=")[0] for line in example.splitlines() if line and not line.startswith("#")}
    assert explained <= named


def test_its_pictures_are_there():
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).stat().st_size > 10_000
