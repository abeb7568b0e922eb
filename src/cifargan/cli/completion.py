"""`cifargan completion`: Tab for bash, zsh and fish.

The scripts ask `cifargan completion --words ...` what may come next. That reads the shipped YAML files, and the flags out
of the commands' source, so it imports neither torch nor Hydra and cannot fall behind.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from cifargan.cli import COMMANDS, SHARED
from cifargan.config_files import all_groups, choices, find, groups, keys_of, known_keys, options
from cifargan.errors import UserError, did_you_mean

BASH = """# cifargan: eval "$(cifargan completion bash)", for good in ~/.bashrc
_cifargan() {
  local line="${COMP_LINE:0:COMP_POINT}" words
  # Bash cuts words at = and : too, which belong to key=value here.
  read -r -a words <<< "$line"
  [[ "$line" == *[[:space:]] ]] && words+=("")
  local current="${words[${#words[@]}-1]}" cut="" found
  [[ "$COMP_WORDBREAKS" == *=* && "$current" == *=* ]] && cut="${current%"${current##*=}"}"
  COMPREPLY=()
  while IFS= read -r found; do COMPREPLY+=("${found#"$cut"}"); done \\
    < <("${words[0]}" completion --words "${words[@]:1}" 2>/dev/null)
  if [[ ${#COMPREPLY[@]} -eq 0 ]]; then
    compopt -o default 2>/dev/null
  elif [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.,] ]]; then
    compopt -o nospace 2>/dev/null
  fi
}
complete -F _cifargan cifargan
"""

ZSH = """#compdef cifargan
# cifargan: eval "$(cifargan completion zsh)" after compinit, for good in ~/.zshrc
_cifargan() {
  local -a found open closed
  found=("${(@f)$("${words[1]}" completion --words "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}")
  found=(${found:#})
  if (( ! ${#found} )); then _files; return; fi
  open=(${(M)found:#*[=.,]})
  closed=(${found:#*[=.,]})
  (( ${#open} )) && compadd -S '' -- "${open[@]}"
  (( ${#closed} )) && compadd -- "${closed[@]}"
}
compdef _cifargan cifargan
"""

FISH = """# cifargan: cifargan completion fish | source, for good in ~/.config/fish/completions/cifargan.fish
function __cifargan_complete
  set -l words (commandline -opc) (commandline -ct)
  $words[1] completion --words $words[2..-1] 2>/dev/null
end
complete -c cifargan -f -a '(__cifargan_complete)'
complete -c cifargan -n 'not count (__cifargan_complete) >/dev/null' -F
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

HELP = """cifargan completion bash|zsh|fish

Prints a script that lets Tab complete commands, their flags, groups, choices and keys:
  bash   eval "$(cifargan completion bash)"        for good: in ~/.bashrc
  zsh    eval "$(cifargan completion zsh)"         for good: in ~/.zshrc, after compinit
  fish   cifargan completion fish | source         for good: in ~/.config/fish/config.fish
"""

TRAIN_FLAGS = ("-m", "--multirun", "--cfg", "--info", "--config-dir", "--config-name", "--resolve", "--help")
WITH_OVERRIDES = ("train", "tune", "data inspect")  # commands that take key=value
VALUES = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "resume": ("latest",),
    "sweep": ("resume",),
    "--cfg": ("job", "hydra", "all"),
}


def run(arguments: list[str]) -> int:
    """Print a script, or, for such a script, what may come next."""
    if arguments and arguments[0] == "--words":
        print("".join(f"{word}\n" for word in complete(arguments[1:])), end="")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    shell = arguments[0]
    if shell not in SCRIPTS:
        hint = did_you_mean(shell, SCRIPTS) or f"; choose from {', '.join(SCRIPTS)}"
        raise UserError(f"cifargan completion {shell}: no such shell{hint}")
    print(SCRIPTS[shell], end="")
    return 0


def complete(words: list[str]) -> list[str]:
    """What the last of some words may become.

    Args:
        words: what stands behind `cifargan`; the last, which may be empty, is being written.

    Returns:
        Whole words, sorted. Those that end in = . or , are to be gone on with.
    """
    *before, current = words or [""]
    if not before:
        return _starting([*COMMANDS, "--help", "--version"], current)
    command = before[0]
    if command not in COMMANDS:
        return []
    source = Source(command)
    if source.commands and len(before) == 1:
        return _starting([*source.commands, "--help"], current)
    sub = before[1] if source.commands else ""
    name = f"{command} {sub}".strip()
    flags = [*TRAIN_FLAGS] if command == "train" else [*source.flags(sub), "--help"]
    if current.startswith("-"):
        return _starting(flags, current)
    if choices := source.choices(sub, before[-1]) or list(VALUES.get(before[-1], ())):
        return _starting(choices, current)
    if before[-1].startswith("--") and command != "train":
        return []  # what it wants is a file or a number
    if name in WITH_OVERRIDES:
        own = _starting([f"{key}=" for key in source.own], current)
        return own + overrides(before[1:], current, data_only=command == "data")
    return _starting(_arguments(command, before), current)


def _arguments(command: str, before: list[str]) -> list[str]:
    """What a command takes that is no flag."""
    if command == "ls":
        return all_groups()
    if command == "cat" or (command == "cp" and len(before) == 1):
        return ["train", *(f"{group}/{name}" for group in all_groups() for name in options(group))]
    if command == "completion":
        return [*SCRIPTS]
    return options("experiment") if command == "bench" and len(before) == 1 else []


def overrides(before: list[str], current: str, *, data_only: bool = False) -> list[str]:
    """Groups, their choices, and keys, one level at a time.

    Args:
        before: the words before, which say what is chosen in a group.
        current: what is being written.
        data_only: whether only what belongs to `data` makes sense.
    """
    key, equals, value = current.partition("=")
    if equals:
        stem, comma, last = value.rpartition(",")
        found = choices(key) if key in all_groups() else list(VALUES.get(key, ()))
        taken = stem.split(",")
        return [f"{key}={stem}{comma}{one}" for one in _starting(found, last) if not comma or one not in taken]
    prefix = key[: key.rfind(".") + 1]
    keys = sorted(set(_keys(before)))
    holders = {one.rpartition(".")[0] for one in keys if "." in one}
    found = [] if prefix else [f"{group}=" for group in all_groups()]
    found += ["resume=", "sweep="] if not prefix else []
    for one in keys:
        if one.startswith(prefix) and "." not in one[len(prefix) :]:
            found.append(f"{one}." if one in holders else f"{one}=")
    if not prefix:
        found += [f"{group}." for group in groups() if any(one.startswith(f"{group}.") for one in keys)]
    if data_only:
        found = [one for one in found if one.startswith("data")]
    return _starting(sorted(set(found)), current)


def _keys(before: list[str]) -> Iterator[str]:
    """The keys of all configs, those of another choice in a group than the one made left out."""
    made = {}
    for word in before:
        group, equals, name = word.partition("=")
        if equals and group in groups() and name in options(group):
            made[group] = name
    others = [group for group in ("data", "evaluator") if group in made]
    for one in known_keys():
        if one.partition(".")[0] not in others:
            yield one
    for group in others:
        shared = find(f"{group}/{made[group]}").path
        yield from keys_of(shared)
        if (common := shared.with_name("_shared.yaml")).exists():
            yield from keys_of(common)


def _starting(words: list[str], current: str) -> list[str]:
    return sorted({word for word in words if word.startswith(current)})


class Source:
    """The flags of a command, read out of its source as text.

    Args:
        command: its name.
    """

    def __init__(self, command: str) -> None:
        module, self._entry = SHARED.get(command, (command, "run"))
        folder = Path(__file__).parent
        self._functions: dict[str, ast.FunctionDef] = {}
        for path in (folder / "options.py", folder / f"{module}.py"):
            if path.exists():
                tree = ast.parse(path.read_text(encoding="utf-8"))
                self._functions |= {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.commands = _table(tree, "COMMANDS")
        self.own = _table(tree, "OWN")

    def flags(self, sub: str) -> list[str]:
        """Every long flag of a command, or of one of its own commands."""
        return sorted({flag for flag, _ in self._declared(sub)})

    def choices(self, sub: str, flag: str) -> list[str]:
        """The values that a flag allows, where they are listed."""
        return [value for name, values in self._declared(sub) if name == flag for value in values]

    def _declared(self, sub: str) -> Iterator[tuple[str, list[str]]]:
        pending, seen = [self.commands.get(sub, self._entry)], set()
        while pending:
            name = pending.pop()
            if name in seen or name not in self._functions:
                continue
            seen.add(name)
            for node in ast.walk(self._functions[name]):
                if not isinstance(node, ast.Call):
                    continue
                if isinstance(node.func, ast.Name):
                    pending.append(node.func.id)
                elif isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
                    yield from _flag(node)


def _flag(node: ast.Call) -> Iterator[tuple[str, list[str]]]:
    values: list[str] = []
    for keyword in node.keywords:
        if keyword.arg == "choices" and isinstance(keyword.value, ast.Tuple | ast.List):
            values = [
                one.value for one in keyword.value.elts if isinstance(one, ast.Constant) and isinstance(one.value, str)
            ]
    for argument in node.args:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value.startswith("--"):
            yield argument.value, values


def _table(tree: ast.Module, name: str) -> dict[str, str]:
    """A dict at the top of a module: its keys, and the names of the functions behind them where there are such."""
    for node in tree.body:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        if isinstance(target, ast.Name) and target.id == name:
            return {
                key.value: value.id if isinstance(value, ast.Name) else ""
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
    return {}
