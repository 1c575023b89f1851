-- Do the detectors deliver what they did?
-- One row per day, bundle, station and age band; the days are UTC and of the end of the work.
-- Results of bundles on trial count for their bundle.
-- Grey values are stored values, before any windowing, as shares of their range; NULL where no film has them.
CREATE VIEW input_drift AS
SELECT
    counted.day AS day,
    bundle.name || ':' || bundle.version AS bundle,
    counted.station AS station,
    counted.age_band AS age_band,
    counted.films AS films,
    counted.grey_films AS grey_films,
    counted.grey_mean_sum / NULLIF(counted.grey_films, 0) AS mean_grey,
    counted.grey_mean_squares / NULLIF(counted.grey_films, 0)
    - (counted.grey_mean_sum / NULLIF(counted.grey_films, 0)) * (counted.grey_mean_sum / NULLIF(counted.grey_films, 0))
        AS grey_variance,
    counted.grey_spread_sum / NULLIF(counted.grey_films, 0) AS mean_grey_spread,
    counted.grey_spread_squares / NULLIF(counted.grey_films, 0)
    - (counted.grey_spread_sum / NULLIF(counted.grey_films, 0))
    * (counted.grey_spread_sum / NULLIF(counted.grey_films, 0)) AS grey_spread_variance,
    counted.spacing_films AS spacing_films,
    counted.spacing_sum / NULLIF(counted.spacing_films, 0) AS mean_spacing,
    counted.spacing_squares / NULLIF(counted.spacing_films, 0)
    - (counted.spacing_sum / NULLIF(counted.spacing_films, 0)) * (counted.spacing_sum / NULLIF(counted.spacing_films, 0))
        AS spacing_variance
FROM (
    SELECT
        daily_input.day,
        daily_input.bundle_id,
        daily_input.station,
        daily_input.age_band,
        daily_input.films,
        daily_input.grey_films,
        daily_input.grey_mean_sum,
        daily_input.grey_mean_squares,
        daily_input.grey_spread_sum,
        daily_input.grey_spread_squares,
        daily_input.spacing_films,
        daily_input.spacing_sum,
        daily_input.spacing_squares
    FROM daily_input
    WHERE NOT EXISTS (SELECT 1 FROM daily_open WHERE daily_open.day = daily_input.day)
    UNION ALL
    SELECT
        open_day_input.day,
        open_day_input.bundle_id,
        open_day_input.station,
        open_day_input.age_band,
        open_day_input.films,
        open_day_input.grey_films,
        open_day_input.grey_mean_sum,
        open_day_input.grey_mean_squares,
        open_day_input.grey_spread_sum,
        open_day_input.grey_spread_squares,
        open_day_input.spacing_films,
        open_day_input.spacing_sum,
        open_day_input.spacing_squares
    FROM open_day_input
) AS counted
JOIN bundle ON bundle.id = counted.bundle_id
