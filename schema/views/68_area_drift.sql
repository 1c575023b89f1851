-- Does a region grow or shrink?
-- One row per day, bundle, station, age band and region; the days are UTC and of the end of the work.
-- Results of bundles on trial count for their bundle.
-- Areas are fractions of the film, of cleaned masks.
CREATE VIEW area_drift AS
SELECT
    counted.day AS day,
    bundle.name || ':' || bundle.version AS bundle,
    counted.station AS station,
    counted.age_band AS age_band,
    counted.region AS region,
    counted.films AS films,
    counted.missing_films AS missing_films,
    counted.area_fraction_sum / counted.films AS mean_area_fraction,
    counted.area_fraction_squares / counted.films
    - (counted.area_fraction_sum / counted.films) * (counted.area_fraction_sum / counted.films) AS variance
FROM (
    SELECT
        daily_region.day,
        daily_region.bundle_id,
        daily_region.station,
        daily_region.age_band,
        daily_region.region,
        daily_region.films,
        daily_region.missing_films,
        daily_region.area_fraction_sum,
        daily_region.area_fraction_squares
    FROM daily_region
    WHERE NOT EXISTS (SELECT 1 FROM daily_open WHERE daily_open.day = daily_region.day)
    UNION ALL
    SELECT
        open_day_region.day,
        open_day_region.bundle_id,
        open_day_region.station,
        open_day_region.age_band,
        open_day_region.region,
        open_day_region.films,
        open_day_region.missing_films,
        open_day_region.area_fraction_sum,
        open_day_region.area_fraction_squares
    FROM open_day_region
) AS counted
JOIN bundle ON bundle.id = counted.bundle_id
