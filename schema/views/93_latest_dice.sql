-- How well does each bundle draw each region, by the newest windows?
-- One row per bundle, region, cohort and period, of the last day that was tracked for the bundle.
-- Where there are too few films the numbers are NULL.
CREATE VIEW latest_dice AS
SELECT
    bundle.name || ':' || bundle.version AS bundle,
    dice_tracking.region AS region,
    dice_tracking.cohort AS cohort,
    dice_tracking.cohort_value AS cohort_value,
    dice_tracking.period AS period,
    dice_tracking.starts_at AS starts_at,
    dice_tracking.ends_at AS ends_at,
    dice_tracking.films AS films,
    dice_tracking.patients AS patients,
    dice_tracking.too_few AS too_few,
    dice_tracking.dice AS dice,
    dice_tracking.dice_low AS dice_low,
    dice_tracking.dice_high AS dice_high,
    dice_tracking.computed_at AS computed_at
FROM dice_tracking
JOIN bundle ON bundle.id = dice_tracking.bundle_id
WHERE
    dice_tracking.ends_at = (
        SELECT MAX(newest.ends_at) FROM dice_tracking AS newest WHERE newest.bundle_id = bundle.id
    )
