"""Records cycles and buffer accesses of SCALE-Sim 3.0.0 for random products, AlexNet's convolutions and N:M weights, as JSON.

SCALE-Sim needs numpy < 2, so this runs in an environment of its own:

    python -m venv /tmp/scalesim
    /tmp/scalesim/bin/pip install scalesim==3.0.0 "numpy<2"
    /tmp/scalesim/bin/python record_scalesim.py recorded.json

The columns of a record: dataflow, array rows, array columns, M, K, N, kept weights of a group, group size, the last cycle's
index that the simulator prints, and its reads of the input and filter buffers and writes of the output buffer.
"""

import contextlib
import io
import json
import random
import sys
import tempfile
from pathlib import Path

CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {columns}
IfmapSramSzkB = 4096
FilterSramSzkB = 4096
OfmapSramSzkB = 4096
IfmapOffset = 0
FilterOffset = 100000000
OfmapOffset = 200000000
Bandwidth = 100
Dataflow = {dataflow}
ReadRequestBuffer = 64
WriteRequestBuffer = 64
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = {sparse}
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 4
RandomNumberGeneratorSeed = 40
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""

# Positions, contraction length and filters of AlexNet's five convolutions on 224 x 224 images.
ALEXNET = [(3025, 363, 96), (529, 2400, 256), (121, 2304, 384), (121, 3456, 384), (121, 3456, 256)]


def resnet50() -> list[tuple[int, int, int]]:
    """The 54 products of SCALE-Sim's own ResNet-50 topology: stride in the 1x1, no padding."""
    products = [(110 * 110, 147, 64)]
    channels, size = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, outer = 64 << stage, 256 << stage
        for block in range(blocks):
            made = size // 2 if stage and not block else size
            products += [(made**2, channels, inner), ((made - 2) ** 2, 9 * inner, inner), (made**2, inner, outer)]
            if not block:
                products.append((made**2, channels, outer))
            channels, size = outer, made
    return [*products, (1, 2048, 1000)]


def simulate(
    dataflow: str, rows: int, columns: int, products: list[tuple[int, int, int]], pattern: tuple[int, int] = (1, 1)
) -> list[list[int | str]]:
    """One run of the simulator over products (M, K, N) on one array; the records of this file's head."""
    from scalesim.scale_sim import scalesim  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        sparse = pattern != (1, 1)
        (home / "run.cfg").write_text(CONFIG.format(rows=rows, columns=columns, dataflow=dataflow, sparse=sparse))
        # A product of an (M, K) matrix is a convolution of an M x K image with N kernels of 1 x K.
        lines = [f"L{index},{m},{k},1,{k},1,{n},1,{pattern[0]}:{pattern[1]}," for index, (m, k, n) in enumerate(products)]
        (home / "run.csv").write_text("\n".join(["name,ih,iw,fh,fw,c,n,stride,sparsity,", *lines]) + "\n")
        layout = [f"L{index}," + "1," * 20 for index in range(len(products))]
        (home / "layout.csv").write_text("\n".join(["name," + "x," * 20, *layout]) + "\n")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run = scalesim(
                save_disk_space=True,
                verbose=False,
                config=str(home / "run.cfg"),
                topology=str(home / "run.csv"),
                layout=str(home / "layout.csv"),
            )
            run.run_scale(top_path=str(home))
        records: list[list[int | str]] = []
        jobs = run.runner.single_layer_sim_object_list
        for job, (m, k, n) in zip(jobs, products, strict=True):
            accesses = [int(x) for x in (job.ifmap_sram_reads, job.filter_sram_reads, job.ofmap_sram_writes)]
            records.append([dataflow, rows, columns, m, k, n, *pattern, int(job.total_cycles), *accesses])
        return records


def main(path: str) -> None:
    draw = random.Random(20)
    records: list[list[int | str]] = []
    for dataflow in ("os", "ws", "is"):
        for _ in range(12):
            rows, columns = draw.randint(1, 24), draw.randint(1, 24)
            products = [(draw.randint(1, 70), draw.randint(1, 70), draw.randint(1, 70)) for _ in range(7)]
            records += simulate(dataflow, rows, columns, products)
    for _ in range(6):
        group = draw.choice([2, 4])
        rows, columns = draw.randint(4, 16), draw.randint(1, 16)
        products = [(draw.randint(1, 40), draw.randint(4, 60), draw.randint(1, 40)) for _ in range(5)]
        records += simulate("ws", rows, columns, products, (draw.randint(1, group // 2), group))
    for dataflow, rows, columns in (("ws", 128, 128), ("os", 256, 256), ("is", 12, 14)):
        records += simulate(dataflow, rows, columns, ALEXNET[1:] if dataflow == "is" else ALEXNET)
    for dataflow in ("os", "ws", "is"):
        records += simulate(dataflow, 128, 128, list(dict.fromkeys(resnet50())))
    text = ",\n".join(json.dumps(record) for record in records)
    Path(path).write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
