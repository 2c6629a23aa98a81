//! How the masks of a growing model rise in a run.

use flm_checkpoint::Checkpoint;
use flm_checkpoint::{GrowthMasks, MaskSchedule};

use crate::error::TrainError;

/// How the masks of a model that is still growing rise in a run (Masked Structural Growth,
/// arXiv 2305.02869): after every optimizer step, as the schedule in config.json says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MaskRise {
    start: Option<GrowthMasks>,
}

impl MaskRise {
    /// The masks of the model that a run starts from.
    ///
    /// # Errors
    /// [`TrainError::Masks`] where they are not what their schedule says at its step: the first update
    /// would change the function by more than it learns.
    pub fn new(checkpoint: &Checkpoint) -> Result<Self, TrainError> {
        let start = checkpoint.config().growth.clone();
        if let Some((masks, schedule)) = start.as_ref().and_then(|m| Some((m, m.schedule?)))
            && *masks != masks.with_mask(schedule.mask(schedule.step))
        {
            let MaskSchedule { step, steps, .. } = schedule;
            let mask = schedule.mask(step);
            return Err(TrainError::Masks { path: checkpoint.dir().into(), mask, step, steps });
        }
        Ok(Self { start })
    }

    /// The lowest mask of the model that `updates` of this run have made, if it has any.
    pub fn value(&self, updates: u64) -> Option<f64> {
        let masks = self.after(updates)?;
        let values = [
            masks.hidden.map(|m| m.mask),
            masks.heads.map(|m| m.mask),
            masks.ffn.map(|m| m.mask),
            masks.layers.map(|m| m.mask),
        ];
        values.into_iter().flatten().reduce(f64::min)
    }

    /// The masks of the model that `updates` of this run have made; `None` once all are 1. Without a
    /// schedule they stay.
    pub fn after(&self, updates: u64) -> Option<GrowthMasks> {
        let start = self.start.as_ref()?;
        let masks = start.at_step(start.schedule.map_or(0, |s| s.step) + updates)?;
        (masks != masks.with_mask(1.0)).then_some(masks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flm_checkpoint::{Mask, ScheduleKind};

    fn masks(mask: f64, schedule: Option<MaskSchedule>) -> MaskRise {
        let ffn = Some(Mask { from: 3, mask });
        let operator = "msg".into();
        let start =
            GrowthMasks { version: 1, operator, hidden: None, heads: None, ffn, layers: None, schedule };
        MaskRise { start: Some(start) }
    }

    #[test]
    fn masks_rise_from_the_step_they_were_saved_at_and_end() {
        let schedule = MaskSchedule { kind: ScheduleKind::Linear, steps: 8, step: 2 };
        let rise = masks(0.25, Some(schedule));
        assert_eq!(rise.after(0), rise.start);
        let later = rise.after(5).unwrap();
        assert_eq!((later.ffn.unwrap().mask, later.schedule.unwrap().step), (0.875, 7));
        assert_eq!((rise.after(6), rise.after(7)), (None, None));
    }

    #[test]
    fn masks_without_a_schedule_stay_unless_they_are_1() {
        assert_eq!(masks(0.5, None).after(100), masks(0.5, None).start);
        assert_eq!(masks(1.0, None).after(0), None);
        assert_eq!(MaskRise::default().after(3), None);
    }
}
