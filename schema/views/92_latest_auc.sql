-- How well does each bundle tell each finding, by the newest windows?
-- One row per bundle, finding, cohort and period, of the last day that was tracked for the bundle.
-- Where there are too few films the numbers are NULL.
CREATE VIEW latest_auc AS
SELECT
    bundle.name || ':' || bundle.version AS bundle,
    auc_tracking.finding AS finding,
    auc_tracking.cohort AS cohort,
    auc_tracking.cohort_value AS cohort_value,
    auc_tracking.period AS period,
    auc_tracking.starts_at AS starts_at,
    auc_tracking.ends_at AS ends_at,
    auc_tracking.positives AS positives,
    auc_tracking.negatives AS negatives,
    auc_tracking.patients AS patients,
    auc_tracking.left_out_training AS left_out_training,
    auc_tracking.left_out_chosen AS left_out_chosen,
    auc_tracking.left_out_uncertain AS left_out_uncertain,
    auc_tracking.too_few AS too_few,
    auc_tracking.auroc AS auroc,
    auc_tracking.auroc_low AS auroc_low,
    auc_tracking.auroc_high AS auroc_high,
    auc_tracking.delong_low AS delong_low,
    auc_tracking.delong_high AS delong_high,
    auc_tracking.average_precision AS average_precision,
    auc_tracking.average_precision_low AS average_precision_low,
    auc_tracking.average_precision_high AS average_precision_high,
    auc_tracking.threshold AS threshold,
    auc_tracking.sensitivity AS sensitivity,
    auc_tracking.sensitivity_low AS sensitivity_low,
    auc_tracking.sensitivity_high AS sensitivity_high,
    auc_tracking.specificity AS specificity,
    auc_tracking.specificity_low AS specificity_low,
    auc_tracking.specificity_high AS specificity_high,
    auc_tracking.f1 AS f1,
    auc_tracking.f1_low AS f1_low,
    auc_tracking.f1_high AS f1_high,
    auc_tracking.youden_threshold AS youden_threshold,
    auc_tracking.brier AS brier,
    auc_tracking.calibration_slope AS calibration_slope,
    auc_tracking.calibration_intercept AS calibration_intercept,
    auc_tracking.computed_at AS computed_at
FROM auc_tracking
JOIN bundle ON bundle.id = auc_tracking.bundle_id
WHERE
    auc_tracking.ends_at = (
        SELECT MAX(newest.ends_at) FROM auc_tracking AS newest WHERE newest.bundle_id = bundle.id
    )
