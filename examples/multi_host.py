"""Several hosts: one sparse model trained on all their devices, with Keras's JAX backend.

Start it once on each host, with the same arguments but for --process. The coordinator is an
address of process 0 with a free port, which the other hosts can reach:

    python examples/multi_host.py --coordinator 10.0.0.1:12345 --processes 2 --process 0
    python examples/multi_host.py --coordinator 10.0.0.1:12345 --processes 2 --process 1

Two processes on one machine, and one process, which gives the same weights but for rounding:

    python examples/multi_host.py --coordinator 127.0.0.1:12345 --processes 2 --process 0 &
    python examples/multi_host.py --coordinator 127.0.0.1:12345 --processes 2 --process 1
    python examples/multi_host.py

Each process feeds its share of every batch. The processes exchange gradients over NCCL between
GPUs and over gloo between CPUs. Process 0 prints accuracy and sparsity and, with --output, writes
the model. Install with `pip install ".[jax]"`.
"""

import argparse
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
if os.environ["KERAS_BACKEND"] != "jax":
    sys.exit(
        "multi_host.py: error: KERAS_BACKEND must be jax, the backend of Keras that trains on "
        f"several hosts, received {os.environ['KERAS_BACKEND']}; unset it"
    )

import jax
import keras
import numpy as np

import keras_lp

TRAINING, TEST, INPUTS, CLASSES = 2560, 640, 64, 4


def make_data():
    """Training and test data in classes that an eighth of the inputs decides."""
    random = np.random.default_rng(0)
    x = random.normal(size=(TRAINING + TEST, INPUTS)).astype("float32")
    y = np.argmax(x[:, : INPUTS // 8] @ random.normal(size=(INPUTS // 8, CLASSES)), axis=1)
    return (x[:TRAINING], y[:TRAINING]), (x[TRAINING:], y[TRAINING:])


def make_model():
    """A dense classifier with 25,088 weights."""
    return keras.Sequential(
        [
            keras.Input((INPUTS,), name="features"),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(CLASSES),
        ],
        name="classifier",
    )


def share_of(data, arguments):
    """What one process feeds of each array: of every batch its part, and whole batches only."""
    end = len(data[0]) // arguments.batch_size * arguments.batch_size
    return [array[arguments.process : end : arguments.processes] for array in data]


def join(arguments):
    """Waits for the other processes, distributes over all devices and returns their number."""
    # The same seed for the same first weights; without one, `initialize` draws and shares one.
    keras.utils.set_random_seed(0)
    if arguments.processes > 1:
        print(
            f"process {arguments.process} of {arguments.processes}: "
            f"joining the others at {arguments.coordinator}",
            flush=True,
        )
        # The default of newer JAX. Between GPUs it is NCCL all the same.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize(
            job_addresses=arguments.coordinator,
            num_processes=arguments.processes,
            process_id=arguments.process,
        )
    # Each process feeds its own share of the data, so Keras has nothing left to split.
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    devices = distribution.device_mesh.shape[0]
    if arguments.batch_size % devices:
        sys.exit(
            f"multi_host.py: error: argument --batch-size: must be a multiple of {devices}, the "
            f"number of devices of all processes, received {arguments.batch_size}"
        )
    keras.distribution.set_distribution(distribution)
    return devices


def train(arguments):
    """Trains the model and returns it with its loss and accuracy on the test data.

    All processes do the same computations in the same order: a process that calls fewer leaves
    the others waiting.
    """
    training, test = (share_of(data, arguments) for data in make_data())
    batch_size = arguments.batch_size // arguments.processes
    model = make_model()
    model.compile(
        optimizer=keras_lp.LpAdamW(2e-3, arguments.weight_decay, p=arguments.p),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        *training,
        batch_size=batch_size,
        epochs=arguments.epochs,
        # A share that is shuffled on its own would make other batches than one process makes.
        shuffle=False,
        verbose=2 if arguments.process == 0 else 0,
    )
    return model, model.evaluate(*test, batch_size=batch_size, verbose=0, return_dict=True)


def at_least(least, kind):
    """A type of the command line: a number that is not below `least`."""

    def parse(text):
        number = kind(text)
        if not least <= number < math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {least}, received {text}")
        return number

    parse.__name__ = kind.__name__
    return parse


def address(text):
    """HOST:PORT from the command line."""
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise argparse.ArgumentTypeError(
            f"must be HOST:PORT, as in 10.0.0.1:12345, received {text}"
        )
    return text


def model_file(text):
    """A .keras file from the command line, in a folder that exists."""
    path = Path(text)
    if path.suffix != ".keras" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"must end in .keras and lie in a folder that exists, received {text}"
        )
    return path


def parse_arguments():
    """The arguments of the command line, checked also against each other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    count, number = at_least(1, int), at_least(0, float)
    parser.add_argument("--processes", type=count, default=1, help="on all hosts together")
    parser.add_argument("--process", type=at_least(0, int), help="number of this one, from 0")
    parser.add_argument("--coordinator", type=address, help="HOST:PORT of process 0")
    parser.add_argument("--epochs", type=count, default=40, help="of 20 steps at batch size 128")
    parser.add_argument("--batch-size", type=count, default=128, help="of all processes together")
    parser.add_argument("--p", type=number, default=0.8, help="exponent of the norm")
    parser.add_argument("--weight-decay", type=number, default=0.2, help="strength of the decay")
    parser.add_argument("--output", type=model_file, help=".keras file, which process 0 writes")
    arguments = parser.parse_args()

    several = f"with --processes {arguments.processes}"
    if arguments.process is None and arguments.processes == 1:
        arguments.process = 0
    if arguments.process is None:
        parser.error(f"argument --process: needed {several}, another one for each, received none")
    if arguments.process >= arguments.processes:
        parser.error(
            f"argument --process: must be at most {arguments.processes - 1} {several}, "
            f"received {arguments.process}"
        )
    if arguments.coordinator is None and arguments.processes > 1:
        parser.error(f"argument --coordinator: HOST:PORT of process 0 needed {several}")
    if arguments.batch_size % arguments.processes or arguments.batch_size > TEST:
        parser.error(
            f"argument --batch-size: must be a multiple of {arguments.processes} {several} and "
            f"at most {TEST}, received {arguments.batch_size}"
        )
    return arguments


def main():
    """Trains on the devices of all processes and prints and writes what came out."""
    arguments = parse_arguments()
    devices = join(arguments)
    model, scores = train(arguments)
    report = keras_lp.sparsity_report(model)
    if arguments.process > 0:
        return
    print(f"\n{report}\n")
    print(
        f"processes: {arguments.processes}, devices: {devices}, "
        f"test accuracy: {scores['accuracy']:.4f}, sparsity: {report.sparsity:.2%}"
    )
    if arguments.output:
        # Saving makes variables; under the distribution they would wait for the other processes.
        keras.distribution.set_distribution(None)
        model.save(arguments.output)
        print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
