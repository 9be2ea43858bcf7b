"""The JavaScript unit tests, run by Node's own test runner, and the facts that both languages write down."""

import json
import subprocess

import pytest

from fgtune.core.project import project_root
from fgtune.export.layout import VARIANTS
from fgtune.format.template import TRIGGER
from fgtune.format.tokens import CONTROL_TOKEN, STOP_IDS
from fgtune.runtimes.node import find_node
from fgtune.site.manifest import PART, SITE_FORMAT

SUITES = sorted((project_root() / "tests" / "js").glob("*.test.mjs"))


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_suite(suite):
    result = subprocess.run([find_node(), "--test", str(suite)], cwd=project_root(), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "# pass 0" not in result.stdout and "# skipped 0" in result.stdout


def test_there_are_suites():
    assert SUITES


def test_constants_are_those_of_python():
    """Numbers, control tokens and variants stand once in each language."""
    code = """
        const [calls, device, dialogue, store] = await Promise.all(
          ['calls', 'device', 'dialogue', 'store'].map((name) => import(`./web/${name}.js`)));
        console.log(JSON.stringify({ part: store.PART, format: store.SITE_FORMAT, stops: dialogue.STOP_IDS,
          trigger: dialogue.TRIGGER, control: calls.CONTROL_TOKEN.source,
          webgpu: device.GPU_ORDER, wasm: device.CPU_ORDER }));
    """
    answer = subprocess.run(
        [find_node(), "--input-type=module", "-e", code], cwd=project_root(), capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    for device in ("webgpu", "wasm"):  # the page prefers each variant that is deployed for the device
        runs_here = [name for name, variant in VARIANTS.items() if device in variant.devices]
        assert sorted(found.pop(device)) == sorted(runs_here), device
    assert found == {"part": PART, "format": SITE_FORMAT, "stops": list(STOP_IDS), "trigger": TRIGGER,
                     "control": CONTROL_TOKEN.pattern}  # fmt: skip
