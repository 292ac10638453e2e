"""``deferred-middleware completion``: print a script that has the shell complete commands and options."""

from __future__ import annotations

import argparse
import shlex

from deferred_middleware.cli.command import PROGRAM, Command
from deferred_middleware.cli.output import print_line

_BASH = """\
_deferred_middleware() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
        [[ "$current" == -* ]] || words=""
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _deferred_middleware {program}"""
# zsh reads completions of bash with its own module.
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def print_completion(arguments: argparse.Namespace) -> int:
    """Print the script for a shell; return the exit status."""
    from deferred_middleware.cli.main import COMMANDS

    cases = []
    for command in COMMANDS:
        parser = command.make_parser()
        options = " ".join(option for action in parser._actions for option in action.option_strings)
        cases.append(f"            {command.name}) words={shlex.quote(options)} ;;")
    names = shlex.quote(" ".join(command.name for command in COMMANDS))
    script = _BASH.format(commands=names, cases="\n".join(cases), program=PROGRAM)
    print_line((_ZSH if arguments.shell == "zsh" else "") + script)
    return 0


def _add_completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that reads the script")


COMMANDS = (
    Command(
        name="completion",
        summary="print a script for the completion of commands in a shell",
        description="Print a script with which bash or zsh completes commands and options.",
        examples=(
            'eval "$(deferred-middleware completion bash)"   # in ~/.bashrc',
            'eval "$(deferred-middleware completion zsh)"    # in ~/.zshrc',
        ),
        add_arguments=_add_completion_arguments,
        run=print_completion,
    ),
)
