"""`python -m fgtune_helpers run | check | tools | audit | serve | sweep`."""

from __future__ import annotations

import argparse
import sys

from fgtune.core.errors import FgtuneError
from fgtune.inference.modules import write_tools
from fgtune.site.server import serve

from . import runner
from .audit import audit
from .checking import check_files
from .params import ParameterError, coerce
from .stage import resolve_run
from .sweep import sweep


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fgtune_helpers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def series(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--params", "-f", action="append", default=[], metavar="FILE", help="flat YAML of parameters")
        sub.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="one parameter")
        sub.add_argument("--force", action="store_true", help="run stages that are done as well")
        return sub

    run = series("run", "run the series; stages that are done are kept")
    run.add_argument("named", nargs="*", metavar="STAGE", help="just these stages; 01b runs only where it is named")
    run.add_argument("--from", dest="start", metavar="STAGE", help="first stage (02, train or 02_train)")
    run.add_argument("--to", dest="end", metavar="STAGE", help="last stage")
    run.add_argument("--only", action="append", default=[], metavar="STAGE", help="just this stage (repeatable)")
    run.add_argument("--skip", action="append", default=[], metavar="STAGE", help="leave this stage out (repeatable)")
    run.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    run.add_argument("--list", action="store_true", help="list the stages and what is done")
    files = commands.add_parser("check", help="read, convert and lint your tools and examples, in seconds")
    files.add_argument("--tools", required=True, metavar="PATH", help="a file or a folder of tools")
    files.add_argument("--examples", metavar="PATH", help="a file or a folder of examples")
    files.add_argument("--json", metavar="FILE", help="write the canonical form and the findings here")
    module = commands.add_parser("tools", help="write the declarations of a module's typed functions")
    module.add_argument("module", metavar="MODULE.py", help="decorated functions, or all with types and a docstring")
    module.add_argument("--out", metavar="FILE", help="write them here, say to tools.json; else they are printed")
    check = commands.add_parser("audit", help="check a finished run from its files alone")
    check.add_argument("run_dir", nargs="?", help="a folder; else that of the chosen params file")
    page = commands.add_parser("serve", help="preview a deployed site on this machine only")
    page.add_argument("site", nargs="?", help="a folder; else the site of the chosen params file's run")
    page.add_argument("--port", type=int, default=8000)
    series("sweep", "train and test every combination of comma-separated values: -p rank 4,8,16")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 a stage failed, 2 bad parameters."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "check":
            return check_files(args.tools, args.examples, args.json)
        if args.command == "tools":
            return write_tools(args.module, args.out)
        if args.command == "audit":
            return audit(args.run_dir or runner.load_params([], [])["run_dir"])
        if args.command == "serve":
            serve(args.site or resolve_run(runner.load_params([], [])["run_dir"]) / "10_deploy_browser/site", args.port)
            return runner.OK
        if args.command == "sweep":
            grid = {n: [coerce(n, v) for v in value.split(",")] for n, value in args.p if "," in value}
            if not grid:
                raise ParameterError("sweep needs at least one parameter with several values: -p rank 4,8,16")
            values = runner.load_params(args.params, [(n, v) for n, v in args.p if n not in grid])
            return sweep(runner.Plan([], values, args.force), grid)
        stages = runner.choose(args.start, args.end, args.only + args.named, args.skip)
        plan = runner.Plan(stages, runner.load_params(args.params, args.p), args.force)
        return runner.list_stages(plan) if args.list or args.dry_run else runner.run_series(plan)
    except (FgtuneError, OSError) as error:
        print(f"fgtune: {error}", file=sys.stderr)
        return runner.BAD
    except KeyboardInterrupt:
        print("\nstopped; what is done is kept, the same command goes on from here", file=sys.stderr)
        return runner.FAILED


if __name__ == "__main__":
    sys.exit(main())
