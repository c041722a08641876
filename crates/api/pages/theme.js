// Light or dark, before anything is drawn. The button goes from the system's choice to the other one, and back.

(() => {
  const KEPT = "tandem.theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  apply(localStorage.getItem(KEPT));
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-action=theme]")) return;
    const theme = isDark() ? "light" : "dark";
    const isSystems = (theme === "dark") === dark.matches;
    apply(isSystems ? null : theme);
    if (isSystems) localStorage.removeItem(KEPT);
    else localStorage.setItem(KEPT, theme);
  });
})();
