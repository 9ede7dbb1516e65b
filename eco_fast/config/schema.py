"""The typed recipe: every key, its unit and its default."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from eco_fast.config.intervals import INTERVAL, check_interval, check_patches
from eco_fast.config.model_sections import EdsrModel, Model, Positive, Section

Scale = Literal[2, 3, 4, 8]
NonNegative = Annotated[int, Field(ge=0)]
Score = tuple[float, float]


class Data(Section):
    """Where the images come from and what a sample is."""

    train: tuple[str, ...] = ()
    """Folders or files of HR images, or "builtin:train"; decoded into `store`. Empty: use `store` as it is."""
    store: str = ""
    """Folder of the decoded images and their centroids; empty: a folder inside the run."""
    validation: tuple[str, ...] = ()
    """HR images scored during training. Used to select best.safetensors: do not put a benchmark set here."""
    monitor: tuple[str, ...] = ()
    """Extra sets to monitor, one per folder of HR images; they never select a checkpoint."""
    test: tuple[str, ...] = ()
    """HR images of the final table; empty: the validation images."""
    rounding: Literal["uint8", "im2double"] = "uint8"
    """MATLAB's convention of the LR images: on 8-bit images (EDSR, RCAN, ECO) or after im2double (BasicSR)."""
    patch: Positive = 48
    """Side of an LR patch, in pixels; the HR patch is `scale` times as large."""
    on_small_image: Literal["refuse", "skip"] = "refuse"
    """What to do about a training image that no HR patch fits into."""
    loader: Literal["auto", "dali", "plain"] = "auto"
    """Data loader. Both give identical batches; auto uses DALI if available and logs the choice."""
    residence: Literal["auto", "device", "host"] = "auto"
    """Where a GPU finds the decoded images: in its own memory, if they fit beside the training (auto); or, crop by
    crop, in the computer's."""
    prefetch: NonNegative = 2
    """Batches that a thread assembles ahead of the step."""
    source: Literal["store", "files"] = "store"
    """store: read the HR images from the store; files: decode the files of `train` at every step (needs DALI)."""
    centroids: str = ""
    """Files only: folder of the centroids' image files, named as the HR files; empty: those of the store."""
    downsample: Literal["kernel", "dali"] = "kernel"
    """What makes the LR images: the fused op, exactly; or DALI, off by one grey level in under 1 % of the pixels."""
    noise_sigma: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the Gaussian noise on the network's input, per colour, in grey levels (0..255). Validation
    uses one draw of it; the final scores are means over ten."""


class Teacher(Section):
    """The frozen network whose outputs are the centroids."""

    checkpoint: str = "self"
    """A checkpoint of the same scale, or "self": first train the same architecture on real pairs alone."""
    steps: Positive = 300_000
    """Length of the "self" teacher's training. A teacher weaker than what the student would reach alone does harm."""
    self_ensemble: bool = False
    """Centroids are the mean over the 8 orientations of each image: better ones, in eight times the time."""


class Objective(Section):
    """What the network is fitted to (paper, Eq. 4, 9, 11 and 14)."""

    name: Literal["vanilla", "kd", "noise_free", "eco", "residual"] = "eco"
    """vanilla: real pairs; kd: real LR and centroid; noise_free: centroid pairs; eco: from centroid to real pairs;
    residual: what the centroid lacks, HR minus centroid on mid-grey (paper, Appendix B), for `analyze noise`."""
    alpha: Literal["sigmoid", "linear", "constant"] = "sigmoid"
    """Course of the real pair's weight under eco."""
    alpha_shift: float = 0.0
    """Sigmoid only: delays the change by a tenth of the training per unit."""
    alpha_value: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Constant only: the weight."""
    alpha_sample: bool = False
    """Choose the real pair per sample with probability alpha, instead of blending."""
    loss: Literal["l1", "l2", "charbonnier"] = "l1"
    """On the 0..255 scale."""


class Optimizer(Section):
    """The optimizer and the course of its learning rate."""

    name: Literal["adam", "adamw", "lamb", "muon"] = "adam"
    """adam and adamw are torch's; lamb is the authors' form (weight norm clamped at 10, no bias correction); muon moves
    the body's filters and matrices along their orthogonalised momentum, and all other weights as adamw."""
    backend: Literal["auto", "triton", "torch", "apex"] = "auto"
    """Who does the step of LAMB or Muon: auto is triton on a GPU, torch on the CPU; for LAMB also apex if it is
    installed, without the clamp."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Base learning rate. Muon's is larger than Adam's: 0.01 is a beginning."""
    adam_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Muon only: base learning rate of the other weights (head, tail, norms, biases); it takes the same course."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moments of Adam and LAMB; Muon's momentum is 0.95."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay."""
    schedule: Literal["constant", "cosine", "step", "milestones"] = "constant"
    """Course of the learning rate after the warm-up."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up."""
    step_size: Positive = 200_000
    """Step schedule only: the learning rate is halved every so many steps."""
    milestones: tuple[Positive, ...] = ()
    """Milestones schedule only: the learning rate is halved at these steps."""
    clip_value: Annotated[float, Field(ge=0)] = 0.0
    """Bound of each gradient element (the authors use 0.1); 0 means no clipping."""
    spike_factor: Annotated[float, Field(ge=0)] = 0.0
    """Skip a step whose loss exceeds this factor times the last accepted loss (the authors use 5); 0 means never."""


class Train(Section):
    """The length of the run, how the machine is used, and what is reported."""

    steps: Positive = 300_000
    """Optimizer steps."""
    batch_size: Positive = 16
    """Patches per step, over all devices."""
    micro_batch: Annotated[Literal["auto"] | NonNegative, BeforeValidator(check_patches)] = 0
    """Patches that a device takes at once: less memory, the same gradients, accumulated. 0: its whole share; auto: the
    number that fits and is fastest, measured when the run begins and kept."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """What the network computes in; auto is bf16 on GPUs from sm_80 on, fp16 on older ones, fp32 on a CPU."""
    deterministic: bool = False
    """The same seed gives the same bits on a GPU too, where that costs speed; a CPU always does so."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the weights' running average, which is then what is scored and kept for use; 0 means none."""
    price_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """What an hour of all devices together costs, in any currency: the run's cost is then predicted. 0: unknown."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Who else is told of the losses, scores and speed: TensorBoard, in the run folder; or Weights & Biases, MLflow or
    trackio, as their own settings and variables say. No weight depends on it."""
    log_every: Positive = 100
    """Steps between progress lines and rows of metrics.jsonl."""
    validate_every: Annotated[int | str, BeforeValidator(check_interval), WithJsonSchema(INTERVAL)] = 1000
    """Steps between validations; or a share of the run's time that they may take, such as "2%": then at those reports
    where it is not exceeded. A run validates at its end in any case."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    keep_checkpoints: Positive = 1
    """Checkpoints that are kept beside the best one: above 1, also as step-NUMBER."""
    timeout: Positive = 1800
    """Seconds after which a process that others wait for is given up."""
    compile: bool = True
    """torch.compile the input, the model and the loss."""
    graph: Literal["auto"] | bool = "auto"
    """Record the whole step as one CUDA graph, so that a GPU does not wait for the host; auto: on a GPU, if it can."""
    device: str = "auto"
    """"auto" takes a GPU where there is one, each process its own; or "cpu", "cuda", "cuda:1"."""
    baseline: bool = False
    """Also train the network on real pairs alone (same steps, samples and initial weights) to compare with."""


class Paper(Section):
    """The row of the paper that a recipe stands for, with its scores (PSNR-Y in dB, SSIM-Y). No run depends on it."""

    row: str = ""
    """Table or figure, and the row in it."""
    set5: Score | None = None
    """On Set5."""
    set14: Score | None = None
    """On Set14."""
    b100: Score | None = None
    """On BSD100."""
    urban100: Score | None = None
    """On Urban100."""
    manga109: Score | None = None
    """On Manga109."""


class Config(Section):
    """A whole recipe."""

    description: str = ""
    """One line for people."""
    scale: Scale = 2
    """Upscaling factor."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the samples and the initial weights."""
    data: Data = Data()
    model: Model = EdsrModel()
    teacher: Teacher = Teacher()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    paper: Paper = Paper()

    @property
    def needs_centroids(self) -> bool:
        """Whether any step of the objective reads the teacher's outputs."""
        constant_one = self.objective.alpha == "constant" and self.objective.alpha_value == 1
        return self.objective.name in ("kd", "noise_free", "residual") or (
            self.objective.name == "eco" and not constant_one
        )

    @property
    def vanilla(self) -> "Config":
        """The same recipe on real pairs alone: same steps, samples and initial weights."""
        return self.model_copy(update={"objective": self.objective.model_copy(update={"name": "vanilla"})})

    @property
    def self_teacher(self) -> "Config":
        """The recipe of teacher.checkpoint = "self": vanilla, with its own number of steps and its own seed."""
        train = self.train.model_copy(update={"steps": self.teacher.steps})
        return self.vanilla.model_copy(update={"train": train, "seed": self.seed + 1})
