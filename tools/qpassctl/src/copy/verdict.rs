//! What a command's end means for those before it.

use qpass_client::{CommandError, Failure};
use std::time::Duration;

/// What is to be done about a write or a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has been carried out.
    Good,
    /// It has not, and may be sent again after a while.
    Again(Duration),
    /// The device, or the way there, was reset: what its cache had may be lost.
    Reset,
    /// A write that had ended well is lost: which, is not known.
    Lost,
    /// It has failed.
    Failed,
}

const NOW: Duration = Duration::ZERO;
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(500);

/// Judges a write or a flush that was sent without CAM's error recovery, which
/// would forget whose the error was.
pub fn of(failure: &Failure) -> Verdict {
    match failure {
        Failure::Failed(error) => of_error(error),
        _ => Verdict::Failed,
    }
}

/// The same, of a command that the device had.
pub fn of_error(error: &CommandError) -> Verdict {
    // BUSY, TASK SET FULL, TASK ABORTED (SAM-6).
    match error.scsi_status() {
        Some(0x08) => return Verdict::Again(LATER),
        Some(0x28) => return Verdict::Again(SOON),
        Some(0x40) => return Verdict::Again(NOW),
        _ => {}
    }
    if let Some(sense) = error.sense() {
        return of_sense(sense.key, sense.asc, sense.ascq, sense.deferred);
    }
    match error.cam.name() {
        "CAM_REQUEUE_REQ" => Verdict::Again(NOW),
        "CAM_BUSY" | "CAM_SCSI_BUSY" => Verdict::Again(LATER),
        "CAM_RESRC_UNAVAIL" | "CAM_REQ_CMP_ERR" | "CAM_UNCOR_PARITY" | "CAM_DATA_RUN_ERR" => {
            Verdict::Again(SOON)
        }
        // Whatever ended them, what the cache had is not known to be there. Sense
        // data that could not be had may have been of a deferred error.
        "CAM_SCSI_BUS_RESET"
        | "CAM_BDR_SENT"
        | "CAM_CMD_TIMEOUT"
        | "CAM_SCSI_IT_NEXUS_LOST"
        | "CAM_AUTOSENSE_FAIL" => Verdict::Reset,
        _ => Verdict::Failed,
    }
}

/// SPC-5, 4.5: sense keys, and deferred errors.
fn of_sense(key: u8, asc: u8, ascq: u8, deferred: bool) -> Verdict {
    match (deferred, key, asc, ascq) {
        // A command that carries an earlier one's error has not been started.
        (true, 0 | 1, ..) => Verdict::Again(NOW),
        (true, ..) => Verdict::Lost,
        // NO SENSE, RECOVERED ERROR, COMPLETED.
        (false, 0 | 1 | 0xf, ..) => Verdict::Good,
        // Becoming ready.
        (false, 2, 0x04, 0x01 | 0x09 | 0x0a | 0x0b | 0x14) => Verdict::Again(LATER),
        // The medium may be another.
        (false, 6, 0x28, _) => Verdict::Failed,
        // Power on, reset, nexus loss.
        (false, 6, 0x29, _) => Verdict::Reset,
        (false, 6, ..) => Verdict::Again(NOW),
        // ABORTED COMMAND.
        (false, 0xb, ..) => Verdict::Again(SOON),
        _ => Verdict::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_commands_error_is_not_this_ones() {
        // Write fault, deferred: of some write before.
        assert_eq!(of_sense(3, 0x0c, 0, true), Verdict::Lost);
        assert_eq!(of_sense(4, 0x44, 0, true), Verdict::Lost);
        // Whoever carries one has not been started, even if it was recovered.
        assert_eq!(of_sense(1, 0x0c, 1, true), Verdict::Again(NOW));
        assert_eq!(of_sense(1, 0x0c, 1, false), Verdict::Good);
        assert_eq!(of_sense(6, 0x29, 0, false), Verdict::Reset);
        assert_eq!(of_sense(6, 0x28, 0, false), Verdict::Failed);
        assert_eq!(of_sense(6, 0x2a, 1, false), Verdict::Again(NOW));
        assert_eq!(of_sense(3, 0x0c, 0, false), Verdict::Failed);
    }
}
