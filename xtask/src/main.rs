//! The checks of this repository, one recipe each: `cargo xtask NAME`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people: what is checked on standard output, what is wrong on standard error"
)]

mod deny;
mod left;
mod packages;
mod recipes;
mod shop;
mod skew;
mod tidy;
mod units;

use std::process::ExitCode;

use crate::recipes::RECIPES;
use crate::shop::Shop;

const USAGE: &str = "usage: cargo xtask [--no-install] RECIPE…

  --no-install    install nothing; what its tool is missing for is skipped, loudly

Recipes:";

fn usage() -> String {
    let width = RECIPES.iter().map(|recipe| recipe.name.len()).max();
    let width = width.unwrap_or_default();
    let all = ("all", "every recipe of a change, in this order");
    let recipes = RECIPES.iter().map(|recipe| (recipe.name, recipe.about));
    let lines = recipes.chain([all]);
    let lines = lines.map(|(name, about)| format!("\n  {name:width$}  {about}"));
    lines.fold(USAGE.to_owned(), |text, line| text + &line)
}

fn main() -> ExitCode {
    let mut install = true;
    let mut wanted = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "-h" | "--help" => {
                println!("{}", usage());
                return ExitCode::SUCCESS;
            }
            "--no-install" => install = false,
            "all" => wanted.extend(RECIPES.iter().filter(|recipe| recipe.of_a_change)),
            name => match RECIPES.iter().find(|recipe| recipe.name == name) {
                Some(recipe) => wanted.push(recipe),
                None => return refuse(&format!("there is no recipe {name:?}")),
            },
        }
    }
    if wanted.is_empty() {
        return refuse("which recipe?");
    }
    let mut shop = Shop::open(install);
    for recipe in wanted {
        shop.begin(recipe.name, recipe.about);
        if let Err(why) = (recipe.run)(&mut shop) {
            eprintln!("error: {}: {why}", recipe.name);
            return ExitCode::FAILURE;
        }
    }
    shop.close();
    ExitCode::SUCCESS
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("error: {why}\n{}", usage());
    ExitCode::from(2)
}
