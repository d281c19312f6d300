"""A segmentor that averages several views of a picture when it is tested."""

import torch
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample


@MODELS.register_module()
class AugmentedEncoderDecoder(EncoderDecoder):
    """mmseg's EncoderDecoder for a test pipeline that ends in TestTimeAug: other scales of a picture, and flipped ones.

    Of every view the class probabilities are taken at the picture's own size and side; the largest mean is the
    prediction. This is mmseg's SegTTAModel (and `aug_test` of mmseg 0), except that no second model is wrapped around
    the first, so that training, checkpoints and --eval-only know one set of names, and that the sum is made as the
    views come: twelve views of a large picture with 150 classes do not have to fit in memory together.
    """

    def test_step(self, data: dict) -> list[SegDataSample]:
        """data: `inputs` and `data_samples`, lists of views of lists of pictures; of one view, lists of pictures.

        -> one sample for each picture, the first view's, with the prediction [1, H, W] of all and without logits.
        """
        if isinstance(data["inputs"][0], torch.Tensor):
            return super().test_step(data)
        views = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
        samples = super().test_step(views[0])
        sums = [self._probabilities(sample) for sample in samples]
        for view in views[1:]:
            for total, sample in zip(sums, super().test_step(view), strict=True):
                total += self._probabilities(sample)
        for total, sample in zip(sums, samples, strict=True):
            mean = total / len(views)
            found = mean.argmax(0, keepdim=True) if self.out_channels > 1 else mean > self.decode_head.threshold
            sample.pred_sem_seg = PixelData(data=found.to(sample.pred_sem_seg.data))
        return samples

    def _probabilities(self, sample: SegDataSample) -> torch.Tensor:
        """[C, H, W] of a sample, which loses its logits. Of one channel mmseg's logits are probabilities already."""
        logits = sample.seg_logits.data
        del sample.seg_logits
        return logits.softmax(0) if self.out_channels > 1 else logits.clone()
