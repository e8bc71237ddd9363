"""The sections of a recipe: every field with its meaning, unit, range and source."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MOST = 2**31 - 1
Auto = Literal["auto"]
FRESH = "none"  # of model.pretrained


def not_bool(value: Any) -> Any:
    """Refuse YAML's `yes`, `no`, `on`, `off` where a number or a word is wanted."""
    if isinstance(value, bool):
        raise ValueError("a number or a word in quotes, not a yes/no value")
    return value


Number = Annotated[float, BeforeValidator(not_bool), Field(allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(not_bool), Field(le=MOST)]


class Section(BaseModel):
    """One frozen section; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(Section):
    """How pictures are read, split and augmented."""

    image_size: Auto | Annotated[Count, Field(ge=4, le=1024)] = Field(
        "auto", description="side of the square network input in pixels, 4 to 1024; auto: the "
        "median short side of the pictures, at most 128")  # fmt: skip
    channels: Auto | Literal[1, 3] = Field(
        "auto", description="1 grey, 3 colour; auto: 1 when every picture is grey"
    )
    storage: Literal["auto", "memory", "stream"] = Field(
        "auto", description="memory: pictures are decoded once, to image_size; stream: from their "
        "files in every epoch, at the size that a crop needs; auto: stream only where the decoded "
        "pictures would not fit into the cache")  # fmt: skip
    valid_fraction: Number = Field(
        0.15, gt=0, lt=0.5, description="share of each class that becomes the valid split"
    )
    test_fraction: Number = Field(
        0.15, ge=0, lt=0.5, description="share of each class that becomes the test split"
    )
    max_bad_fraction: Number = Field(
        0.01, ge=0, le=1, description="share of undecodable files above which the data are refused"
    )


class AugmentSection(Section):
    """Random changes of train batches; 0, false and none are off."""

    crop: Number = Field(
        0.0, ge=0, lt=1, description="random resized crop: largest share of a picture's area that "
        "is left out; 0.92 is usual for photos (Szegedy et al. 2015, section 6)")  # fmt: skip
    shift: Number = Field(
        0.125, ge=0, le=0.5, description="largest random shift, as a fraction of the side "
        "(0.125 is 4 pixels of 32: He et al. 2015, section 4.2)")  # fmt: skip
    flip: Auto | bool | Literal["alternating"] = Field(
        "auto", description="horizontal flip: true at random, alternating in every other epoch "
        "(Jordan 2024, section 3.6); auto: only where a trial shows that mirrored pictures are "
        "recognised as well")  # fmt: skip
    flip_vertical: bool = Field(False, description="random vertical flip")
    rotate: Number = Field(0.0, ge=0, le=180, description="largest random turn, in degrees")
    zoom: Number = Field(
        0.0, ge=0, lt=1, description="largest random change of scale, as a fraction"
    )
    shear: Number = Field(0.0, ge=0, le=60, description="largest random shear, in degrees")
    brightness: Number = Field(
        0.0, ge=0, le=1, description="largest random change of brightness, as a fraction of white"
    )
    contrast: Number = Field(
        0.0, ge=0, le=1, description="largest random change of contrast, as a fraction"
    )
    saturation: Number = Field(
        0.0, ge=0, le=1, description="largest random change of saturation, as a fraction"
    )
    hue: Number = Field(
        0.0, ge=0, le=0.5, description="largest random turn of the hue, as a fraction of the circle"
    )
    blur: Number = Field(
        0.0, ge=0, le=8, description="largest deviation of a random Gaussian blur, in pixels"
    )
    sharpen: Number = Field(
        0.0, ge=0, le=4, description="largest random share of an unsharp mask that is added"
    )
    cutout: Number = Field(
        0.0, ge=0, lt=1, description="side of a square that is blanked, as a fraction of the short "
        "side (DeVries & Taylor 2017)")  # fmt: skip
    mixup: Number = Field(
        0.0, ge=0, le=10, description="alpha of MixUp (Zhang et al. 2018); 0.2 is usual"
    )
    cutmix: Number = Field(
        0.0, ge=0, le=10, description="alpha of CutMix (Yun et al. 2019); 1 is usual"
    )
    policy: str = Field(
        "none", description="none, randaugment (Cubuk et al. 2020), trivialaugment (Müller & "
        "Hutter 2021), or package.module:function")  # fmt: skip
    policy_strength: Number = Field(
        0.3, ge=0, le=1, description="strength of randaugment's changes (0.3 is 9 of 30)"
    )


class ModelSection(Section):
    """Which network."""

    name: str = Field(
        "auto", description="a registered model, any of timm or torchvision (timm.NAME and "
        "torchvision.NAME where both have it, else timm's), or package.module:function; auto: "
        "chosen by measurement")  # fmt: skip
    pretrained: str = Field(
        FRESH, min_length=1, description="first weights. none: random; cache: the library's own, "
        "from its local cache (HF_HUB_CACHE, TORCH_HOME); download: the same, fetched where they "
        "are absent; cache:TAG and download:TAG: others of the model's; or a run folder or file: "
        ".safetensors, .npz, .pt, .pth, .th, .bin")  # fmt: skip
    keep_head: bool = Field(
        False, description="keep the last layer of pretrained weights, for the same classes in the "
        "same order; else it is learnt anew")  # fmt: skip
    mean: tuple[Annotated[Number, Field(ge=0, le=1)], ...] = Field(
        (), description="mean of each channel by which pictures are centred, a fraction of white; "
        "(): that of the pretrained weights (ImageNet's where nothing says it), else of the train "
        "split")  # fmt: skip
    std: tuple[Annotated[Number, Field(gt=0, le=1)], ...] = Field(
        (), description="deviation of each channel that pictures are scaled by, as model.mean"
    )
    width: Number = Field(
        1.0, gt=0, le=8, description="factor on the channels of trimtab's own networks"
    )
    dropout: Number = Field(0.0, ge=0, lt=1, description="dropout in front of the last layer")
    stochastic_depth: Number = Field(
        0.0, ge=0, lt=1, description="chance of the last residual branch to be left out in a step, "
        "earlier ones in proportion (Huang et al. 2016)")  # fmt: skip
    whiten: bool = Field(
        False, description="set the first convolution to the principal directions of train patches "
        "and freeze it (Page 2018; Jordan 2024, section 3.2)")  # fmt: skip
    identity: bool = Field(
        False, description="let convolutions start by passing their inputs on (Jordan 2024, "
        "section 3.3)")  # fmt: skip
    norm_momentum: Auto | Annotated[Number, Field(gt=0, le=1)] = Field(
        "auto", description="share of a batch in the running statistics of batch norm; auto: as "
        "the network has it, mostly 0.1")  # fmt: skip
    freeze_norms: bool = Field(
        False, description="keep the statistics of batch norm as they are: for small batches and "
        "pretrained networks")  # fmt: skip


class TrainSection(Section):
    """How the weights are found."""

    epochs: Count = Field(60, ge=1, description="passes over the train split at the most")
    batch_size: Auto | Annotated[Count, Field(ge=2)] = Field(
        "auto",
        description="samples per step; auto: 32 to 128, so that an epoch has 40 steps or more",
    )
    micro_batch: Auto | Annotated[Count, Field(ge=1)] = Field(
        "auto", description="samples per forward pass, whose gradients add up to one step; auto: "
        "the whole batch, halved while memory does not hold it")  # fmt: skip
    optimizer: str = Field(
        "adamw", description="a registered optimizer, a class of torch.optim by its name, or "
        "package.module:function")  # fmt: skip
    learning_rate: Auto | Annotated[Number, Field(gt=0)] = Field(
        "auto", description="peak learning rate; auto: the optimizer's usual one (adamw 3e-3, "
        "sgd 0.1; for other packages' classes their own default)")  # fmt: skip
    momentum: Number = Field(
        0.9,
        ge=0,
        lt=1,
        description="momentum of sgd (Nesterov), muon and rmsprop, beta1 of adam's "
        "family; adagrad has none",
    )
    bias_rate: Number = Field(
        1.0, gt=0, le=1000, description="factor on the learning rate of batch norm's biases, whose "
        "weights then stay at 1 (Jordan 2024, section 3.4: 64)")  # fmt: skip
    layer_decay: Number = Field(
        1.0, gt=0, le=1, description="factor on the learning rate for each block between a layer "
        "and the head, so that early layers of pretrained networks learn slower (Howard & Ruder "
        "2018)")  # fmt: skip
    head_only: Number = Field(
        0.0, ge=0, lt=1, description="share of the training, at its start, in which only the last "
        "layer learns and batch norms stay as they are")  # fmt: skip
    schedule: str = Field(
        "one_cycle", description="a registered schedule, or package.module:function"
    )
    warmup: Number = Field(
        0.0, ge=0, lt=1, description="share of the training in which the learning rate rises "
        "linearly to the schedule's start; one_cycle and triangular rise on their own")  # fmt: skip
    final_rate: Number = Field(
        0.0, ge=0, le=1, description="lowest learning rate, as a fraction of the peak"
    )
    cycles: Count = Field(
        3, ge=1, le=1000, description="cycles of cosine_restarts and the triangular schedules"
    )
    gamma: Number = Field(
        0.1, gt=0, lt=1, description="factor of each drop of step, multi_step and plateau; what "
        "exponential and exp_range have reached at the end")  # fmt: skip
    milestones: tuple[Annotated[Number, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.75), description="progress at which multi_step drops, counted after the warm-up"
    )
    power: Number = Field(1.0, gt=0, le=10, description="exponent of the polynomial schedule")
    plateau_patience: Count = Field(
        5, ge=1, description="epochs without a better valid accuracy after which plateau drops"
    )
    loss: str = Field("cross_entropy", description="a registered loss, or package.module:function")
    focal_gamma: Number = Field(
        2.0, ge=0, le=10, description="how much focal turns to hard samples (Lin et al. 2017)"
    )
    huber_delta: Number = Field(1.0, gt=0, description="error above which huber is linear")
    quantile: Number = Field(0.5, gt=0, lt=1, description="quantile that the loss quantile seeks")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: each class weighs as if all had the same number of samples"
    )
    average: Literal["none", "ema", "swa", "lookahead"] = Field(
        "none", description="averaged weights: ema (exponential), swa (Izmailov et al. 2018, from "
        "three quarters on), lookahead (Zhang et al. 2019)")  # fmt: skip
    average_decay: Auto | Annotated[Number, Field(ge=0, lt=1)] = Field(
        "auto", description="share that ema keeps per step (auto: 0.999), or that the slow weights "
        "of lookahead take of the fast ones (auto: 0.5)")  # fmt: skip
    average_every: Count = Field(5, ge=1, description="steps between two updates of lookahead")
    hard_fraction: Number = Field(
        1.0, gt=0, le=1, description="share of each batch, that of largest loss, to learn from "
        "(Jiang et al. 2019)")  # fmt: skip
    resolution: tuple[Annotated[Number, Field(gt=0, le=1)], ...] = Field(
        (), description="sides of the pictures, as fractions of the full one, each for an equal "
        "share of the training; the last should be 1 (Howard 2018)")  # fmt: skip
    patience: Count = Field(
        20, ge=1, description="epochs without a better valid accuracy after which training stops"
    )
    min_delta: Number = Field(
        0.0, ge=0, lt=1, description="gain of valid accuracy that counts as better for patience"
    )
    restore_best: bool = Field(
        True, description="end with the weights that were best on valid; false: with the last "
        "ones, e.g. where valid is too small to tell epochs apart"
    )  # fmt: skip
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: the fastest by a short probe; fp16 needs a CUDA device and "
        "scales the loss (Micikevicius et al. 2018)")  # fmt: skip
    layout: Literal["auto", "channels_last", "contiguous"] = Field(
        "auto", description="order of the values in memory; auto: the faster by a short probe"
    )
    compile: Auto | bool = Field(
        "auto", description="compile forward and backward pass; auto: where the training is long "
        "enough to win the time back and compiled steps are measured to be faster")  # fmt: skip
    checkpoint_seconds: Number = Field(
        60.0, gt=0, description="seconds between two checkpoints: what a crash costs at the most"
    )


class RegularizeSection(Section):
    """What keeps the network from learning the train split by heart."""

    weight_decay: Auto | Annotated[Number, Field(ge=0)] = Field(
        "auto", description="weight decay, not on norms and biases; auto: 0.05 where it is "
        "decoupled from the gradient (adamw, lion), else 5e-4")  # fmt: skip
    label_smoothing: Number = Field(
        0.1, ge=0, lt=1, description="share of the label spread over all classes (Szegedy 2016)"
    )
    l1: Number = Field(
        0.0, ge=0, description="weight of the sum of absolute weights in the loss, not of norms "
        "and biases")  # fmt: skip
    clip_norm: Number = Field(
        0.0, ge=0, description="largest norm of all gradients together (Pascanu et al. 2013); 0: "
        "any")  # fmt: skip
    clip_value: Number = Field(0.0, ge=0, description="largest absolute gradient; 0: any")
    sharpness: Number = Field(
        0.0, ge=0, le=1, description="radius of sharpness-aware minimisation, whose steps take "
        "twice the time (Foret et al. 2021: 0.05)")  # fmt: skip
    sharpness_start: Number = Field(
        0.0, ge=0, lt=1, description="share of the training before the first sharpness-aware step; "
        "0.8 keeps them to the last fifth of the epochs asked for (Zhou et al. 2024, "
        "2410.10373)")  # fmt: skip
    sharpness_share: Number = Field(
        1.0, gt=0, le=1, description="share of the batch, 32 samples at the least, that says where "
        "the loss rises, and whose loss is logged: with 0.25 such a step costs a quarter more, not "
        "twice as much (Bahri et al. 2022, 2110.08529)")  # fmt: skip


class CompressSection(Section):
    """Which edits are tried, and what they may cost."""

    prune_keep: tuple[Annotated[Number, Field(gt=0, le=1)], ...] = Field(
        (0.7, 0.5), description="shares of channels kept, one pruned candidate each; () for none"
    )
    importance: str = Field("magnitude", description="magnitude, or package.module:function")
    finetune_fraction: Number = Field(
        0.3, gt=0, le=1, description="epochs of fine-tuning as a share of the parent's epochs"
    )
    quantize: Literal["int8", "none"] = Field("int8", description="int8, or none")
    ranges: str = Field(
        "mse", description="how activation ranges are set: minmax, percentile or mse"
    )
    calibration_samples: Count = Field(
        512, ge=1, description="train samples that set the activation ranges"
    )
    allowed_drop: Number = Field(
        0.01, ge=0, le=1, description="accuracy an edit may cost on valid before it is not kept; "
        "more where its parent has more to spare above the target")  # fmt: skip


class ExportSection(Section):
    """What the artifact must prove."""

    max_logit_difference: Number = Field(
        1e-3, gt=0, description="largest difference of logits between the run and its fp32 file, "
        "relative to the largest logit")  # fmt: skip
    max_flip_fraction: Number = Field(
        0.05, ge=0, le=1, description="largest share of decisions an int8 file may change"
    )
