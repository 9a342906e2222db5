"""keras-audiolm: continue, sample, resynthesize, train, evaluate, detect...

Only the standard library is imported up here, so that `--help` and mistyped
commands answer at once. What was typed is checked before Keras is imported
and a preset is loaded.
"""

import os
import sys

from keras_audiolm._backend import BACKENDS
from keras_audiolm.commands.codec import add_decode, add_encode
from keras_audiolm.commands.convert import add_convert
from keras_audiolm.commands.evaluate import add_detect, add_evaluate
from keras_audiolm.commands.generate import (
    add_continue,
    add_resynthesize,
    add_sample,
)
from keras_audiolm.commands.listening import add_listening
from keras_audiolm.commands.options import (
    Parser,
    common_options,
    running_options,
    sampling_options,
)
from keras_audiolm.commands.running import check_output, say
from keras_audiolm.commands.tokenize import add_tokenize
from keras_audiolm.commands.train import Stopped, add_train
from keras_audiolm.version import __version__


def build_parser():
    parser = Parser(
        prog="keras-audiolm",
        description="AudioLM in Keras 3: continue, sample and train on audio.",
        epilog="KERAS_AUDIOLM_DEBUG=1 or --debug shows tracebacks.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    commands = parser.add_subparsers(
        title="commands",
        dest="command",
        metavar="COMMAND",
        required=True,
        parser_class=Parser,
    )
    common = common_options()
    sampling = sampling_options()
    add_continue(commands, [sampling, common])
    add_sample(commands, [sampling, common])
    add_resynthesize(commands, [sampling, common])
    add_train(commands, [common])
    add_tokenize(commands, [common])
    add_encode(commands, [common])
    add_decode(commands, [common_options(None, "the one that FILE names")])
    add_convert(commands)
    add_evaluate(commands)
    add_detect(commands, [common])
    add_listening(commands, [sampling, running_options()])
    return parser


def describe(error):
    """The one line that stands for an exception."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError) and error.name in BACKENDS:
        return (
            f"the Keras backend {error.name} is not installed. Run pip "
            f"install 'keras-audiolm[{error.name}]', or choose another with "
            "--backend."
        )
    if isinstance(error, ValueError | OSError | ImportError):
        return text
    return (
        f"unexpected {type(error).__name__}: {text} (--debug shows the "
        "traceback)"
    )


def main(argv=None):
    """Runs the command line.

    Args:
        argv: optional list of str. Defaults to `sys.argv[1:]`.

    Returns:
        int. 0; 1 after an error, 130 after Ctrl-C. Wrong usage exits with 2.
    """
    args = build_parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    debug = args.debug or os.environ.get("KERAS_AUDIOLM_DEBUG")
    try:
        if "output" in args and args.output.suffix:
            check_output(args.output)
        args.run(args)
    except (KeyboardInterrupt, Stopped) as error:
        say(f"keras-audiolm: {str(error) or 'stopped'}")
        return 130
    except Exception as error:
        if debug:
            raise
        say(f"keras-audiolm: error: {describe(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
