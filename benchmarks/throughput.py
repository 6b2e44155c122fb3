"""Compare this project's ways to train with the usual PyTorch loop, side by side on this machine.

The usual loop is a DataLoader with workers, torchvision's transforms and an eager network; here it computes in fp32
(on a GPU with TF32 in its convolutions, as torch does by default), and once more under autocast where the device has
bf16. The rows take turns, so that a machine whose speed drifts drifts for all of them; a row's speed is the median of
its turns. Bytes and FLOPs are those of an ideally fused step, given as the share of what this device was measured to
copy and to multiply in the same precision.
"""

import argparse
import csv
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from resnet_cifar import dataset, machine, params, settings
from resnet_cifar.cells import Cell
from resnet_cifar.errors import exit_with
from resnet_cifar.native.engine import NativeEngine
from resnet_cifar.numerics import determinism
from resnet_cifar.numerics.batches import BatchStream
from resnet_cifar.numerics.data import Dataset, Split
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.numerics.engine import Engine, Turn
from resnet_cifar.numerics.graph import GraphEngine
from resnet_cifar.numerics.initialization import initialize
from resnet_cifar.numerics.models import WIDTHS, Architecture, CifarResNet
from resnet_cifar.numerics.network import DTYPES
from resnet_cifar.numerics.protocol import Recipe, learning_rates
from resnet_cifar.progress import say
from resnet_cifar.report.speed import LOOP
from resnet_cifar.training.engines import Computer

ITERATIONS = 64_000
PACKS = (1, 2, 5, 10, 20)
TURNS = 3
WARM_UP = 3
COLUMNS = (
    "date", "device", "threads", "torch", "network", "way", "precision", "networks_at_once", "images_per_second",
    "seconds_per_64k_iterations", "times_the_usual_loop", "percent_of_copy_bandwidth", "percent_of_matrix_rate",
)  # fmt: skip


@dataclasses.dataclass
class Way:
    """One way to train: ``run(count)`` does so many iterations of each of ``networks`` and waits for them."""

    name: str
    precision: str
    networks: int
    threads: int
    run: Callable[[int], None]
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def seconds_per_iteration(self) -> float:
        """Of one network: the time of an iteration of all, divided by their number."""
        return statistics.median(self.seconds) / self.networks


# ---- The usual loop --------------------------------------------------------------------------------------------


class Images(TorchDataset):
    """Augmented images and labels one by one, as torchvision's users load them."""

    def __init__(self, split: Split, mean: list[float], std: list[float]) -> None:
        self.images = split.images.cpu().permute(0, 2, 3, 1).numpy()
        self.labels = split.labels.tolist()
        steps = [v2.ToPILImage(), v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def _endless(loader: DataLoader) -> Iterator[list[torch.Tensor]]:
    while True:
        yield from loader


class UsualLoop:
    """Epoch after epoch of a DataLoader; forward, loss, backward, ``torch.optim.SGD``; the loss read every step."""

    def __init__(self, recipe: Recipe, data: Dataset, computer: Computer, autocast: bool) -> None:
        self.computer, self.device = computer, computer.device
        mean, std = (tensor.flatten().tolist() for tensor in data.normalization("channel"))
        on_gpu = self.device.type == "cuda"
        self.loader = DataLoader(
            Images(data.train, mean, std),
            recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=min(8, len(os.sched_getaffinity(0))),
            pin_memory=on_gpu,
            persistent_workers=True,
        )
        self.batches = _endless(self.loader)
        self.model = CifarResNet(Architecture(recipe.net, recipe.n, recipe.shortcut))
        initialize(self.model, recipe.seed, recipe.initialization)
        self.model.to(self.device).train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.autocast = torch.autocast(self.device.type, torch.bfloat16) if autocast else nullcontext()

    def __call__(self, count: int) -> None:
        with _defaults(self.computer):
            for _ in range(count):
                images, labels = (tensor.to(self.device, non_blocking=True) for tensor in next(self.batches))
                with self.autocast:
                    loss = F.cross_entropy(self.model(images), labels)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                loss.item()


@contextmanager
def _defaults(computer: Computer) -> Iterator[None]:
    """What people run with: any algorithm, the fastest by trial, and TF32."""
    torch.set_deterministic_debug_mode("default")
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        determinism.configure(computer.device, computer.threads)


# ---- This project's ways ---------------------------------------------------------------------------------------


def together(engines: list[Engine], recipe: Recipe, data: Dataset) -> Callable[[int], None]:
    """Advance all engines by so many iterations, in turns, and wait for them."""

    def advance(engine: Engine, count: int) -> Iterator[Turn]:
        stream = BatchStream(recipe.seed, len(data.train), recipe.batch_size)
        for start in range(0, count, engine.stretch):
            steps = min(engine.stretch, count - start)
            yield from engine.steps(stream.rows(start, steps), learning_rates(recipe, start, steps))

    def run(count: int) -> None:
        active = [advance(engine, count) for engine in engines]
        while active:
            active = [turns for turns in active if next(turns, None)]

    return run


def ways(recipe: Recipe, data: Dataset, computer: Computer) -> list[Way]:
    """All ways that this device has, made ready."""
    device, threads, precision = computer.device, computer.threads, computer.precision(recipe)
    made = [Way(LOOP, "fp32", 1, threads, UsualLoop(recipe, data, computer, autocast=False))]
    if machine.has_precision("bf16", device):
        made.append(Way("usual loop, autocast", "bf16", 1, threads, UsualLoop(recipe, data, computer, autocast=True)))
    eager = EagerEngine(recipe, data, precision)
    made.append(Way("this step, eager", precision, 1, threads, together([eager], recipe, data)))
    if computer.native:
        for count in sorted({1, threads}):
            native = NativeEngine(recipe, data, computer.native, count)
            made.append(Way("native engine", "fp32", 1, count, together([native], recipe, data)))
    if device.type == "cuda":
        made += packed(recipe, data, computer)
    return made


def packed(recipe: Recipe, data: Dataset, computer: Computer) -> Iterator[Way]:
    """As many at once as the device has memory for."""
    graphs: list[Engine] = []
    precision = computer.precision(recipe)
    for count in PACKS:
        try:
            while len(graphs) < count:
                graphs.append(GraphEngine(recipe, data, precision, torch.cuda.Stream(computer.device)))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            print(f"no memory for {count} at once", file=sys.stderr)
            return
        yield Way("this step, graph", precision, count, computer.threads, together(graphs[:count], recipe, data))


def measure(made: list[Way], seconds: float) -> None:
    """Give every way its turns, each about so many seconds long."""
    counts = []
    for way in made:
        way.run(WARM_UP)
        counts.append(min(ITERATIONS, max(1, round(seconds / _timed(way, WARM_UP)))))
    for _ in range(TURNS):
        for way, count in zip(made, counts, strict=True):
            way.seconds.append(_timed(way, count))


def _timed(way: Way, count: int) -> float:
    """Seconds of one iteration of all its networks."""
    began = time.perf_counter()
    way.run(count)
    return (time.perf_counter() - began) / count


# ---- The limits ------------------------------------------------------------------------------------------------


def flops(n: int, batch_size: int) -> float:
    """Of one iteration: two for each multiplication of convolutions and classifier, forward once and back twice."""
    multiplications = 9 * 3 * WIDTHS[0] * 32**2 + 10 * WIDTHS[-1]
    for width, size in zip(WIDTHS, (32, 16, 8), strict=True):
        first = width if width == WIDTHS[0] else width // 2
        multiplications += 9 * size**2 * (first * width + (2 * n - 1) * width**2)
    return 2 * 3 * multiplications * batch_size


def traffic(n: int, batch_size: int, element: int) -> float:
    """Bytes of one iteration if everything between two convolutions is fused into them.

    A convolution's output is written and read going forward; going back it is read twice, its gradient written once
    and read twice (batch normalisation needs the sums over the batch first). Every second convolution ends a block,
    whose output and its gradient are written and read once: 7 + 4 / 2 passes over all outputs.
    """
    outputs = 16 * 32**2 + 2 * n * (16 * 32**2 + 32 * 16**2 + 64 * 8**2)
    return 9 * outputs * batch_size * element


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy too large for the caches."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _fastest(lambda: target.copy_(source), device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two large square matrices."""
    size = 8192 if device.type == "cuda" else 2048
    x = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _fastest(lambda: x @ x, device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(7):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


# ---- The table -------------------------------------------------------------------------------------------------


def rows(recipe: Recipe, data: Dataset, computer: Computer, seconds: float) -> Iterator[dict[str, object]]:
    """Measure one depth; a row a way."""
    made = ways(recipe, data, computer)
    measure(made, seconds)
    usual = made[0].seconds_per_iteration
    bandwidth = copy_bandwidth(computer.device)
    rates = {dtype: matrix_rate(computer.device, dtype) for dtype in {DTYPES[way.precision] for way in made}}
    for way in made:
        dtype = DTYPES[way.precision]
        each = way.seconds_per_iteration
        yield {
            "date": datetime.now(UTC).date().isoformat(),
            "device": machine.device_name(computer.device),
            "threads": way.threads,
            "torch": torch.__version__,
            "network": Cell(recipe.net, recipe.n, recipe.seed).network,
            "way": way.name,
            "precision": way.precision,
            "networks_at_once": way.networks,
            "images_per_second": round(recipe.batch_size / each, 1),
            "seconds_per_64k_iterations": round(ITERATIONS * each, 1),
            "times_the_usual_loop": round(usual / each, 2),
            "percent_of_copy_bandwidth": round(
                100 * traffic(recipe.n, recipe.batch_size, dtype.itemsize) / each / bandwidth, 1
            ),
            "percent_of_matrix_rate": round(100 * flops(recipe.n, recipe.batch_size) / each / rates[dtype], 1),
        }


def line(row: dict[str, object]) -> str:
    """A row for people."""
    return (
        f"{row['network']}  {row['way']:22} {row['precision']:5} {row['threads']:2} threads  "
        f"{row['networks_at_once']:2} at once  "
        f"{row['images_per_second']:>10,.0f} images/s  "
        f"{row['seconds_per_64k_iterations']:>9,.0f} s for {ITERATIONS:,} iterations  "
        f"{row['times_the_usual_loop']:6.2f} x the usual loop  "
        f"{row['percent_of_copy_bandwidth']:5.1f}% of copy  "
        f"{row['percent_of_matrix_rate']:5.1f}% of matrix"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="data/cifar10.safetensors", help="the preprocessed data set")
    parser.add_argument("--out", type=Path, default="benchmarks/throughput.csv", help="the table to append to")
    parser.add_argument("--n", type=int, nargs="+", default=[3, 9], help="depths 6n+2 (default: 3 9)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn (default: 10; on a GPU 2 are enough)")
    args = parser.parse_args()

    study = params.load()
    computer = Computer(settings.read(), say)
    data = dataset.load(args.data).to(computer.device)
    new = not args.out.exists()
    with args.out.open("a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            table.writeheader()
        for n in args.n:
            # At a small rate, so that no way ends early because its loss is not finite; the work is the same.
            recipe = dataclasses.replace(study.recipe(Cell("resnet", n, 0)), lr=0.001)
            for row in rows(recipe, data, computer, args.seconds):
                table.writerow(row)
                print(line(row), flush=True)


if __name__ == "__main__":
    exit_with(main)
