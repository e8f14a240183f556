/* The choice of the language; the folded parts of the page are open on paper. */
(function () {
  "use strict";
  const root = document.documentElement;
  const folded = document.querySelectorAll("details:not(.long)");

  function choose(language) {
    root.dataset.lang = language;
    root.lang = language === "zh" ? "zh-CN" : "en";
    try { localStorage.setItem("fledge-language", language); } catch (refused) { /* a file may have no storage */ }
    showChoice();
    document.dispatchEvent(new Event("fledge-language"));
  }

  function showChoice() {
    document.querySelectorAll("[data-choose]").forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.choose === root.dataset.lang));
    });
  }

  document.querySelectorAll("[data-choose]").forEach((button) => {
    button.addEventListener("click", () => choose(button.dataset.choose));
  });
  window.addEventListener("beforeprint", () => {
    root.classList.add("printing");
    folded.forEach((one) => { one.dataset.was = one.open ? "1" : ""; one.open = true; });
  });
  window.addEventListener("afterprint", () => {
    root.classList.remove("printing");
    folded.forEach((one) => { one.open = one.dataset.was === "1"; });
  });
  showChoice();
})();
