from typing import TypedDict

class BuildInfo(TypedDict):
    cuda: bool
    cuda_version: str
    architectures: list[str]
    compiler: str
    flags: str
    torch_version: str

class Traffic:
    @property
    def read(self) -> int: ...
    @property
    def written(self) -> int: ...
    @property
    def launches(self) -> int: ...

class SePlan:
    @property
    def strategy(self) -> str: ...
    @property
    def vec(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def splits(self) -> int: ...
    @property
    def forward_workspace_bytes(self) -> int: ...
    @property
    def backward_workspace_bytes(self) -> int: ...
    @property
    def forward(self) -> Traffic: ...
    @property
    def backward(self) -> Traffic: ...

def plan(
    n: int,
    c: int,
    s: int,
    r: int,
    dtype: str,
    layout: str,
    weight_dtype: str,
    aligned: bool,
) -> SePlan: ...
def build_info() -> BuildInfo: ...
