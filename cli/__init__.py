"""The ``fedshift`` command: arguments and printing, nothing else.

Nothing heavy is imported before it is needed: ``fedshift --help`` must feel instant.
"""

from __future__ import annotations

import errno
import io
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedshift import UserError, __version__
from fedshift.papers import NUMBERS, PAPERS
from fedshift.protocol.words import visible

if TYPE_CHECKING:
    from fedshift.client.agent.connection import Address

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated learning across hospitals and scanner vendors: simulate sites, train, and "
    "measure how far each model travels.",
)
sites_app = typer.Typer(no_args_is_help=True, help="Look at a federation's sites and images.")
app.add_typer(sites_app, name="sites")
client_app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    help="Run a site, or ask something of it at the site.",
)
app.add_typer(client_app, name="client")

server_app = typer.Typer(help="Coordinate real sites, and ask of the coordinator.")
app.add_typer(server_app, name="server")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Options, such as federation=manifest rounds=5."),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A folder of further configs, such as DIR/method/NAME.yaml."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Print the version when asked."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def demo(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Run a small federation of phantom vendors and write its report to ./demo."""
    from fedshift.cli.simulate import simulate

    ours = ["federation=cardiac_phantom", "rounds=5", "out=demo", "resume=true"]
    simulate([*ours, *(overrides or [])], config_dir)


@app.command()
def simulate(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Train and compare a federation on this machine; write a run folder with a report."""
    from fedshift.cli.simulate import simulate as run

    run(overrides or [], config_dir)


@app.command()
def compare(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Run a grid of simulations, such as strategy=fedavg,fedbn seed=0,1,2, and rank them."""
    from fedshift.cli.compare import compare as run

    run(overrides or [], config_dir)


@app.command()
def evaluate(
    run: RunFolder,
    overrides: Overrides = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Score on the images of this table instead.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Folder of the tables under RUN/evaluations.")
    ] = None,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="The run is your own: open the images that it names.")
    ] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Score a finished run's models again without training, also on other data."""
    from fedshift.cli.evaluate import evaluate as score

    score(run, overrides or [], manifest, name, config_dir, trusted=trusted)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
) -> None:
    """Draw the figures and the page of runs again."""
    from fedshift.cli.report import report as draw

    for run in runs:
        draw(run)


@app.command()
def advise(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[RUN|COMPARISON]", help="The folder of either.")
    ] = None,
    graded: Annotated[
        bool, typer.Option("--graded", help="Count the hits on federations built for one advice.")
    ] = False,
    seeds: Annotated[str, typer.Option(help="With --graded: seeds, joined by commas.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="With --graded: the folder of its runs.")] = Path(
        "graded"
    ),
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --graded: worker processes.")
    ] = None,
) -> None:
    """Say what to try next - harmonise, personalise, robust, nothing - and check it."""
    from fedshift.cli.advise import advise as tell
    from fedshift.cli.advise import grade

    if graded == (folder is not None):
        raise UserError("name the folder of a run or of a comparison, or give --graded")
    if folder is not None:
        tell(folder)
    else:
        grade(out, seeds, workers)


@app.command(epilog="\n\n".join(f"{number}  {PAPERS[name]}" for number, name in NUMBERS.items()))
def reproduce(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help="The paper's number, see below.")],
    seeds: Annotated[str, typer.Option(help="Seeds of the runs, joined by commas.")] = "0,1,2",
    preset: Annotated[
        str, typer.Option(metavar="small|paper", help="For two CPU cores, or the paper's size.")
    ] = "small",
    out: Annotated[
        Path | None, typer.Option(help="The folder; reproductions/PAPER if not set.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; as many as are of use if not set.")
    ] = None,
) -> None:
    """Run a paper's comparison on phantoms; print its table beside ours and judge its claims."""
    from fedshift.cli.reproduce import reproduce as run

    run(paper, seeds, preset, out, workers)


@app.command()
def tasks() -> None:
    """List what can be learnt: the labels that each task needs and the methods that serve it."""
    from fedshift.cli.methods import list_tasks

    list_tasks()


@app.command()
def methods() -> None:
    """List the adaptation methods, their papers and the sites they train at."""
    from fedshift.cli.methods import list_methods

    list_methods()


@app.command()
def strategies() -> None:
    """List the aggregation strategies, their papers, what travels and what a round costs."""
    from fedshift.cli.strategies import list_strategies

    list_strategies()


@app.command()
def explain(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Say which tensors a strategy averages and which stay at their site."""
    from fedshift.cli.explain import explain as tell

    tell(overrides or [], config_dir)


@sites_app.command("list")
def sites_list(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """List a federation's sites, without reading an image."""
    from fedshift.cli.sites import list_sites

    list_sites(overrides or [], config_dir)


@sites_app.command("inspect")
def sites_inspect(
    overrides: Overrides = None,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also draw images of each site with their labels."),
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Print each site's fingerprint: counts, spacing, intensity, labels, vendor."""
    from fedshift.cli.sites import inspect_sites

    inspect_sites(overrides or [], pictures, config_dir)


@sites_app.command("check")
def sites_check(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Look for faulty images and labels; exit with 2 when there are errors."""
    from fedshift.cli.sites import check_sites

    check_sites(overrides or [], config_dir)


@sites_app.command("adopt")
def sites_adopt(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the images are; or a MONAI datalist.")
    ],
    out: Annotated[Path, typer.Option(help="The table to write, .tsv or .csv.")] = Path(
        "MANIFEST.tsv"
    ),
    layout: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="auto, bids, nnunet, decathlon, monai, dicom, mnms, mnms2, fets, prostate, hc18, "
            "spinal_cord or pairs.",
        ),
    ] = "auto",
    site: Annotated[str | None, typer.Option(help="The site of every image.")] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="Who was scanned: its first group, searched in the image's path."
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Searched in the path; named groups such as (?P<site>...): site, subject, "
            "session, vendor, scanner.",
        ),
    ] = None,
    sequence: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of several sequences or channels.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of several raters or kinds of labels.")
    ] = None,
    links: Annotated[
        bool,
        typer.Option(
            "--links",
            help="DICOM: where several series lie in one folder, make folders of links to their "
            "files beside the table.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the table.")] = False,
) -> None:
    """Write a manifest of a folder: BIDS, nnU-Net, DICOM, published sets, images and labels."""
    from fedshift.cli.sites import adopt_folder

    said = {"site": site, "subject": subject, "pattern": pattern}
    said |= {"sequence": sequence, "label": label}
    adopt_folder(folder, out, layout, said, links=links, force=force)


@sites_app.command("example")
def sites_example(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")],
    sites: Annotated[int, typer.Option(min=1, help="How many hospitals.")] = 3,
) -> None:
    """Write phantom hospitals as files, each a folder with its table, to try a deployment with."""
    from fedshift.cli.sites import write_example_sites

    write_example_sites(folder, sites)


@sites_app.command("plan")
def sites_plan(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Say what auto would set for the federation, why, and what a training step costs."""
    from fedshift.cli.sites import plan_sites

    plan_sites(overrides or [], config_dir)


State = Annotated[
    Path, typer.Option("--state", metavar="DIR", help="The folder that the site's agent was given.")
]
_STATE = Path("fedshift-site")
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The name of a run.")]
Site = Annotated[str | None, typer.Option(metavar="NAME", help="What the site is called.")]
Data = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER|MANIFEST", help="The site's table of images, or its folder."),
]
Server = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The coordinator.")]
Roots = Annotated[
    Path | None,
    typer.Option(metavar="ca.crt", help="The authorities that are trusted, the system's if none."),
]
Key = Annotated[Path | None, typer.Option(metavar="site.key", help="The site's private key.")]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", metavar="policy.yaml", help="What may be asked here.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Threads = Annotated[
    int, typer.Option(min=1, help="Of torch; part of the arithmetic: a simulation has 1.")
]
Transport = Annotated[str, typer.Option(metavar="https|grpc", help="How messages travel.")]
Certificate = Annotated[
    Path | None, typer.Option(metavar="NAME.crt", help="The site's certificate, for grpc.")
]
Proxy = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="http://NAME:PASSWORD@HOST:PORT; HTTPS_PROXY of the environment if none.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Settings of the site, as data.columns.path=x."
    ),
]


@client_app.callback()
def client(
    context: typer.Context,
    site: Site = None,
    data: Data = None,
    server: Server = None,
    root_certificates: Roots = None,
    key: Key = None,
    policy: PolicyFile = None,
    state: State = _STATE,
    device: Device = "auto",
    threads: Threads = 1,
    transport: Transport = "https",
    certificate: Certificate = None,
    proxy: Proxy = None,
    settings: Set = None,
) -> None:
    """Run a site: serve a coordinator, as far as the site's policy goes. Commands are for its
    staff."""
    if context.invoked_subcommand is not None:
        return
    from fedshift.cli.client import run, site_options

    given = {"--site": site, "--data": data, "--server": server, "--key": key}
    for name, value in given.items():
        if value is None:
            raise UserError(f"{name} is missing; `fedshift client --help` says what a site needs")
    assert site and data and server and key
    options = site_options(site, data, policy, settings or [], device, threads)
    run(options, _address(server, key, root_certificates, transport, certificate, proxy), state)


def _address(
    server: str,
    key: Path,
    root_certificates: Path | None,
    transport: str,
    certificate: Path | None,
    proxy: str | None,
) -> Address:
    from fedshift.client.agent.connection import Address

    if transport not in ("https", "grpc"):
        raise UserError(f"--transport must be https or grpc, not {transport!r}")
    return Address(server, key, root_certificates, transport, certificate, proxy)  # type: ignore[arg-type]


@client_app.command("key")
def client_key(
    private: Annotated[Path, typer.Argument(metavar="[FILE]", help="The key to make.")] = Path(
        "site.key"
    ),
) -> None:
    """Make the site's key, which never leaves it, and its public half for the coordinator."""
    from fedshift.cli.client import key

    key(private)


@client_app.command("policy")
def client_policy() -> None:
    """Print a commented policy to begin with."""
    from fedshift.cli.client import print_policy

    print_policy()


@client_app.command("status")
def client_status(
    state: State = _STATE,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what the agent does; exit with 0 in contact, 3 out of contact, 4 not running."""
    from fedshift.cli.client import show_status

    show_status(state, as_json=as_json)


@client_app.command("approve")
def client_approve(
    run: RunName,
    state: State = _STATE,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Show what a run asks for and what would leave, and let it in."""
    from fedshift.cli.client import approve

    approve(run, state, yes=yes)


@client_app.command("leave")
def client_leave(run: RunName, state: State = _STATE) -> None:
    """Refuse a run from now on."""
    from fedshift.cli.client import leave

    leave(run, state, purge=False)


@client_app.command("purge")
def client_purge(run: RunName, state: State = _STATE) -> None:
    """Refuse a run from now on, and remove what it kept here; the ledger stays."""
    from fedshift.cli.client import leave

    leave(run, state, purge=True)


@client_app.command("forget")
def client_forget(
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="As in the site's table.")],
    state: State = _STATE,
) -> None:
    """Leave a subject out of all that is asked from now on; say which models had it."""
    from fedshift.cli.client import forget

    forget(subject, state)


@client_app.command("model")
def client_model(
    run: RunName,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("model"),
    state: State = _STATE,
) -> None:
    """Take a run's model home: the shared one, and the site's own."""
    from fedshift.cli.client import model

    model(run, out, state)


@client_app.command("ledger")
def client_ledger(state: State = _STATE) -> None:
    """Check that no line of the site's ledger was changed or taken out."""
    from fedshift.cli.client import check_ledger

    check_ledger(state)


@client_app.command("who")
def client_who(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A subject or case of a table.")],
    state: State = _STATE,
) -> None:
    """Say which subject or case a code stands for that left the site in its place."""
    from fedshift.cli.client import who

    who(code, state)


@app.command()
def doctor(
    server: Server,
    key: Key,
    root_certificates: Roots = None,
    site: Site = None,
    data: Data = None,
    policy: PolicyFile = None,
    state: State = _STATE,
    device: Device = "auto",
    transport: Transport = "https",
    certificate: Certificate = None,
    proxy: Proxy = None,
    settings: Set = None,
) -> None:
    """Look at what keeps a site from taking part: key, disk, network, certificate, clock, data,
    policy, GPU."""
    from fedshift.cli.client import examine, site_options

    assert server and key
    address = _address(server, key, root_certificates, transport, certificate, proxy)
    options = None
    if data is not None:
        options = site_options(site or "site", data, policy, settings or [], device, 1)
    examine(options, address, state)


ServerState = Annotated[
    Path,
    typer.Option(
        "--state",
        metavar="DIR",
        envvar="FEDSHIFT_SERVER_STATE",
        help="The folder of the coordinator's keys, sites, runs and log.",
    ),
]
_SERVER_STATE = Path("fedshift-server")
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="NAME|IP",
        help="How sites call this machine; may be given several times. This machine alone if not.",
    ),
]


@server_app.callback(invoke_without_command=True)
def server(
    context: typer.Context,
    state: ServerState = _SERVER_STATE,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Submit this config at once.")
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where sites reach it by HTTPS.")
    ] = "127.0.0.1:9443",
    grpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where sites reach it by gRPC, too.")
    ] = None,
    dashboard: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Show a live page, on this machine alone."),
    ] = None,
    lease_s: Annotated[
        float, typer.Option(min=1, help="A site not heard of for so many seconds is away.")
    ] = 15.0,
    max_message_mb: Annotated[
        float, typer.Option(min=1, help="The largest answer of a site that is taken.")
    ] = 1000.0,
) -> None:
    """Serve the enrolled sites and run what is submitted, until SIGTERM or Ctrl-C."""
    if context.invoked_subcommand is not None:
        given = context.get_parameter_source("state")
        if given is not None and given.name == "COMMANDLINE":
            raise UserError(
                f"write --state after the command: fedshift server {context.invoked_subcommand} "
                f"--state {state}"
            )
        return
    from fedshift.cli.server import serve
    from fedshift.runs.serve import ServeSettings

    serve(state, ServeSettings(listen, grpc, dashboard, lease_s, max_message_mb), config)


@server_app.command("keys")
def server_keys(
    host: Hosts = None,
    state: ServerState = _SERVER_STATE,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Make the server's certificate anew, while it runs or not."),
    ] = False,
) -> None:
    """Make the authority, the server's certificate and their keys."""
    from fedshift.cli.server import keys

    keys(state, host or [], again=renew)


@server_app.command("enroll")
def server_enroll(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name from now on.")],
    public_key: Annotated[
        Path, typer.Argument(metavar="site.pub", help="What `fedshift client key` wrote there.")
    ],
    state: ServerState = _SERVER_STATE,
    replace: Annotated[
        bool, typer.Option("--replace", help="In the place of the site's earlier key.")
    ] = False,
) -> None:
    """Let the site that holds a key take part, under a name."""
    from fedshift.cli.server import enroll

    enroll(state, name, public_key, replacing=replace)


@server_app.command("revoke")
def server_revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")],
    state: ServerState = _SERVER_STATE,
) -> None:
    """Let a site take part no more, from this moment on."""
    from fedshift.cli.server import revoke

    revoke(state, name)


AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@server_app.command("sites")
def server_sites(state: ServerState = _SERVER_STATE, as_json: AsJson = False) -> None:
    """List the enrolled sites: here or away, last heard, version, refusals, bytes."""
    from fedshift.cli.server import sites

    sites(state, as_json=as_json)


@server_app.command("runs")
def server_runs(state: ServerState = _SERVER_STATE, as_json: AsJson = False) -> None:
    """List the runs: how far each is, whom it waits for, why it ended."""
    from fedshift.cli.server import runs

    runs(state, as_json=as_json)


@server_app.command("submit")
def server_submit(
    config: Annotated[
        Path, typer.Argument(metavar="FILE", help="A config, such as a run's config.yaml.")
    ],
    overrides: Overrides = None,
    sites: Annotated[
        str,
        typer.Option(metavar="a,b,c", help="Who takes part; data.sites if not set, or else all."),
    ] = "",
    wait: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="Wait so long for them; without an end if not set."
        ),
    ] = None,
    purpose: Annotated[
        str, typer.Option(metavar="TEXT", help="What it is for, as the sites' staff is shown.")
    ] = "",
    asked_by: Annotated[
        str, typer.Option(metavar="TEXT", help="Who asks for it, as the sites' staff is shown.")
    ] = "",
    state: ServerState = _SERVER_STATE,
    config_dir: ConfigDir = None,
) -> None:
    """Have the running server run a simulation's config at the sites."""
    from fedshift.cli.server import submit

    told = {"wait_s": wait, "purpose": purpose, "asked_by": asked_by}
    submit(state, config, overrides or [], sites, config_dir, **told)


@server_app.command("stop")
def server_stop(run: RunName, state: ServerState = _SERVER_STATE) -> None:
    """End a run where it stands."""
    from fedshift.cli.server import stop

    stop(state, run)


@server_app.command("resume")
def server_resume(run: RunName, state: ServerState = _SERVER_STATE) -> None:
    """Go on with a run that was stopped or that failed."""
    from fedshift.cli.server import resume

    resume(state, run)


_MENDABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
"""What a disk, its rights or what lies in the way may refuse; the user can mend it."""

_STOPPED = {130: "interrupted", 143: "terminated"}
"""By exit code. Typer exits with the first, and without a word, on Ctrl-C."""


def main() -> None:
    """Run the command; a mistake the user can mend is one sentence and exit code 2."""
    before = signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What the terminal's encoding lacks is spelt out, and never ends a run.
            stream.reconfigure(errors="backslashreplace")
    # A name in letters that the figures' font lacks: boxes there, and whole on the page.
    warnings.filterwarnings("ignore", "Glyph .* missing from")
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except UnicodeEncodeError as error:
        if error.encoding.replace("-", "").lower().startswith("utf8"):
            raise
        _fail(
            f"this machine's locale ({error.encoding}) cannot spell the name {error.object!r}; "
            "set PYTHONUTF8=1 and run again"
        )
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror}; mend that and run again")
    except SystemExit as stop:
        if stop.code in _STOPPED:
            typer.echo(
                f"fedshift: {_STOPPED[stop.code]}; the same command goes on from the last round "
                "(simulate: with resume=true)",
                err=True,
            )
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, _: object) -> None:
    """End as on Ctrl-C, so that workers are ended too; a second signal waits for nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _fail(sentence: str) -> NoReturn:
    """End with one line; what a name in it holds is shown, not obeyed."""
    typer.echo(f"fedshift: {visible(' '.join(sentence.splitlines()))}", err=True)
    sys.exit(2)
