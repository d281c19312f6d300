# UperNet on ADE20K, 160k iterations, with a Swin transformer, tested at six scales and flipped.
#
#   selfpatch run CKPT --task ade20k_upernet_swin_160k_tta --data /data/ADEChallengeData2016 --eval-only MODEL
#
# Protocol   the training of ade20k_upernet_swin_160k; at the test twelve views of each picture: 0.5, 0.75, 1, 1.25, 1.5
#            and 1.75 times (2048, 512), each also flipped; their class probabilities are averaged. MODEL is the
#            last.pth of that recipe, so that one training gives both numbers; without --eval-only it is trained first.
# Hardware   one GPU of 16 GB or more for the evaluation (estimated); for the training, that recipe's.
# Time       about 1 to 2 hours on one A100 for the evaluation of 2000 pictures; with the training about 12 to 18 hours
#            for Swin-T on 8 A100s (estimates from the number of pixels, not measured).
# Expected   MoBY Swin-T: mIoU 45.58; supervised 45.81 (MoBY's README, ms+flip).
# Known      every value: SwinTransformer/Swin-Transformer-Semantic-Segmentation 87e6f90, tools/test.py --aug-test.
# Different  mmseg 1's own `tta_pipeline` is another protocol: its ratios are those of the stored picture, not of
#            (2048, 512). Reconstructed: nothing.
_base_ = ["./ade20k_upernet_swin_160k.py"]

harness = dict(
    version=1,
    protocol="ade20k-upernet-swin-160k-tta",
    family="swin",
    dataset="ade20k",
    noise=1.0,  # half width of the run-to-run band, as usually quoted; not measured here
    published=(("ade20k", "upernet_160k_ms_flip"),),
    batch=16,
    per_gpu=2,
    lr=6e-5,
    amp="off",
)

model = dict(type="AugmentedEncoderDecoder")
test_views = dict(
    type="TestTimeAug",
    transforms=[
        [
            dict(type="Resize", scale=(int(2048 * ratio), int(512 * ratio)), keep_ratio=True)
            for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
        ],
        [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
        [dict(type="LoadAnnotations", reduce_zero_label=True)],
        [dict(type="PackSegInputs")],
    ],
)
val_dataloader = dict(dataset=dict(pipeline=[dict(type="LoadImageFromFile"), test_views]))
