"""Every field once, with its meaning. Variants start from here and change a few lines.

The values are those of EscherNet's recipe (arXiv 2402.03908, section 4 and appendix; marked
"paper"), at the size of Stable Diffusion 1.5. `FILE:smoke` shrinks any config to a network that
trains in a minute on a CPU, on procedural scenes.
"""

from ml_collections import ConfigDict

from escherjax.errors import UserError


def get_config(arg: str = "") -> ConfigDict:
    return finish(base(), arg)


def finish(config: ConfigDict, arg: str) -> ConfigDict:
    """Applies the part of `--config FILE:ARG` behind the colon."""
    if arg == "smoke":
        return smoke(config)
    if arg:
        raise UserError(f"--config: unknown variant {arg!r} behind the colon; needed 'smoke'.")
    return config


def base() -> ConfigDict:
    c = ConfigDict()
    c.seed = 42  # draws of data, noise and initial parameters (released code)
    c.num_steps = 100_000  # optimizer updates (paper)
    c.batch_size = 672  # scenes an update, over all devices (paper: 6 GPUs x 112)
    c.accumulation_steps = 1  # micro-batches an update; must divide batch_size
    c.resolution = 256  # pixels, square (paper)
    c.num_references = 3  # N, reference views a scene (paper)
    c.min_references = 0  # 1 or more: N is drawn from [min, num] for each scene; 0: always num
    c.num_targets = 3  # M, target views a scene (paper)
    c.cape = "6dof"  # camera encoding: 6dof, 4dof, 4dof_paper, none
    c.dtype = "bfloat16"  # compute: bfloat16 (paper) or float32; parameters have their own
    c.param_dtype = "float32"  # storage of parameters, EMA and optimizer state
    c.remat = False  # recompute activations block by block in the backward pass, to save memory
    c.attention = "auto"  # kernel: auto, xla, cudnn
    c.attention_gather = "all"  # of all views' keys, with mesh.view: all at once, or ring
    c.conditioning_dropout = 0.1  # probability that a scene's reference tokens become zero
    c.guidance_scale = 3.0  # classifier-free guidance of the samples drawn while training

    c.log_every_steps = 10
    c.checkpoint_every_steps = 2000  # (released code)
    c.sample_every_steps = 2000  # picture of references, targets and samples; 0: never
    c.eval_every_steps = 2000  # PSNR on held-out scenes; 0: never
    c.keep_checkpoints = 3  # newest checkpoints to keep

    c.unet = ConfigDict()  # Stable Diffusion 1.5's U-Net, 859.5M parameters
    c.unet.block_channels = (320, 640, 1280, 1280)
    c.unet.attention = (True, True, True, False)  # which levels attend
    c.unet.layers_per_block = 2
    c.unet.num_heads = 8
    c.unet.norm_groups = 32

    c.encoder = ConfigDict()  # ConvNeXtV2-tiny, 27.9M parameters; its last width feeds the U-Net
    c.encoder.depths = (3, 3, 9, 3)
    c.encoder.widths = (96, 192, 384, 768)
    c.encoder.patch_size = 4
    c.encoder.image_size = 224  # references are resized to this, bicubic

    c.latents = ConfigDict()
    c.latents.kind = "vae"  # vae: SD's autoencoder, frozen; pixels: space-to-depth, no parameters
    c.latents.patch = 2  # pixels only: side of the pixel block behind one latent position
    c.latents.vae = ConfigDict()
    c.latents.vae.latent_channels = 4
    c.latents.vae.block_channels = (128, 256, 512, 512)
    c.latents.vae.layers_per_block = 2
    c.latents.vae.norm_groups = 32
    c.latents.vae.scaling_factor = 0.18215  # latents are multiplied by this

    c.diffusion = ConfigDict()  # Stable Diffusion's schedule
    c.diffusion.num_train_timesteps = 1000
    c.diffusion.beta_schedule = "scaled_linear"
    c.diffusion.beta_start = 0.00085
    c.diffusion.beta_end = 0.012
    c.diffusion.prediction_type = "epsilon"  # predicts epsilon, v_prediction or sample
    c.diffusion.timestep_spacing = "leading"  # of DDIM: leading (released code) or trailing
    c.diffusion.rescale_betas_zero_snr = False  # last timestep without any signal; v or sample only

    c.optimizer = ConfigDict()  # AdamW with a joint gradient clip
    c.optimizer.peak_lr = 1e-4  # (paper)
    c.optimizer.initial_lr = 1e-5  # where the warm-up starts (released code)
    c.optimizer.final_lr = 1e-5  # where the cosine ends (paper)
    c.optimizer.warmup_steps = 1000  # (paper)
    c.optimizer.decay_steps = 100_000  # length of the cosine, counted from step 0 (released code)
    c.optimizer.first_update_at_peak = False  # the released code's first update runs at peak_lr
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 0.01  # on every parameter (paper)
    c.optimizer.max_grad_norm = 0.5  # of U-Net and encoder together (released code)

    c.ema = ConfigDict()
    c.ema.enabled = True  # average everything trained; samples and exports use the average
    c.ema.decay = 0.9999  # upper limit; early on it is (1 + step) / (10 + step)

    c.data = ConfigDict()
    c.data.source = ""  # folder of shards, "procedural" (rendered at start), or several: A,B
    c.data.weights = ()  # share of each of several sources in the rows; (): by number of scenes
    c.data.split = "train"
    c.data.heldout_split = "heldout"  # of the first source, for eval; procedural has its own
    c.data.buckets = ()  # ((N, M, weight), ...): every step draws one; (): num_references, targets
    c.data.with_replacement = True  # draw the N + M views of a scene with replacement (paper)
    c.data.background = "zero123"  # zero123: only alpha = 0 turns white (released code); white
    c.data.latents = False  # take targets' moments from the shards (data_prep.latents), no encoder
    c.data.zoom = ()  # (low, high), log-uniform factor on the focal length: crops; pads if < 1
    c.data.shift = 0.0  # how far off centre a crop may lie, in sides of the picture
    c.data.augment_views = False  # draw zoom and shift for each view, not for each scene
    c.data.on_bad_record = "stop"  # stop: refuse to go on; skip: leave the scene out, count it
    c.data.num_threads = 16  # on each host; each makes whole batches
    c.data.prefetch = 16  # batches made ahead, on each host
    c.data.num_scenes = 1024  # procedural only
    c.data.num_views = 12  # procedural only: views rendered of each scene

    c.mesh = ConfigDict()  # devices along each axis; -1: the rest
    c.mesh.data = 1  # replicas of the parameters
    c.mesh.dcn_data = 1  # of these, how many TPU slices (or hosts) that only a slow network joins
    c.mesh.fsdp = -1  # shards of parameters and optimizer; the batch is split over data x fsdp
    c.mesh.model = 1  # shards of attention heads and of channels inside units
    c.mesh.view = 1  # shards of the target views of a scene, which attend to each other

    c.eval = ConfigDict()  # while training, on fixed scenes
    c.eval.num_scenes = 16
    c.eval.num_references = (1, 3)  # N values, each a row of figures
    c.eval.num_targets = 4
    c.eval.num_sampling_steps = 50  # DDIM
    c.eval.batch_size = 16  # scenes sampled at once

    c.init = ConfigDict()  # what a new run starts from; "": nothing. Folders, or hub ids owner/name
    c.init.pipeline = ""  # EscherNet, a pipeline folder of PyTorch weights: all parts
    c.init.workdir = ""  # a work directory of ours or a checkpoint in it, of any mesh: all parts
    c.init.unet = ""  # only the U-Net, such as Stable Diffusion 1.5's; goes before the two above
    c.init.encoder = ""  # only the image encoder: a ConvNeXtV2 folder as transformers writes it
    c.init.vae = ""  # only the VAE, such as Stable Diffusion 1.5's
    c.init.workdir_weights = ""  # of init.workdir: ema or raw; "": ema where the run kept one
    c.init.allow_partial = False  # leave tensors that do not fit at initialisation; else refuse
    return c


def smoke(c: ConfigDict) -> ConfigDict:
    c.num_steps, c.batch_size, c.resolution = 20, 8, 32
    c.dtype = "float32"
    c.log_every_steps, c.checkpoint_every_steps = 5, 10
    c.sample_every_steps = c.eval_every_steps = 20
    c.unet.block_channels, c.unet.attention = (32, 64), (False, True)
    c.unet.layers_per_block, c.unet.num_heads, c.unet.norm_groups = 1, 4, 8
    c.encoder.depths, c.encoder.widths = (1, 1, 1), (16, 32, 64)
    c.encoder.patch_size, c.encoder.image_size = 2, 32
    c.latents.kind, c.latents.patch = "pixels", 2
    c.optimizer.warmup_steps, c.optimizer.peak_lr = 5, 1e-3
    c.data.source, c.data.num_scenes = "procedural", 64
    c.data.num_threads, c.data.prefetch = 2, 4
    c.eval.num_scenes, c.eval.batch_size, c.eval.num_sampling_steps = 8, 8, 5
    c.eval.num_references = (c.num_references,)
    return c
